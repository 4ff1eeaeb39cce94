"""Decide whether a model may replace the champion: a pure function of two evaluations.

Both hold the same images with the same holes. The pairs' protocol names the metrics that are asked.
Of a metric of single images, differences are taken pair by pair, and their mean has a bootstrap
interval. "Not worse" must be shown: the interval must end within the tolerance, so too few pairs
fail the gate. A metric of two sets has no interval: its value of all pairs must be within the
tolerance of the champion's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.evaluation import intervals, metrics, results, sets
from pipeline.evaluation.metrics import Metric

ALL = "all pairs"
Scored = tuple[pa.Table, dict[str, Any]]  # scores per image, and the facts of their file


@dataclass(frozen=True)
class Rules:
    """dB of PSNR and units of SSIM; `bound` for the mean over buckets, `tolerance` in each one.

    The tolerances of the other metrics are in their records.
    """

    tolerance: float = 0.10
    bound: float = 0.02
    floor_psnr: float = 12.0
    floor_ssim: float = 0.30


def decide(
    challenger: Scored, champion: Scored | None, pairs: Mapping[str, Any], rules: Rules
) -> tuple[list[str], dict[str, Any]]:
    """Return the reasons against the challenger (none: it passes) and the figures behind them.

    Without a champion only the floors apply. pairs: the pinned ones, with their buckets, the SSIM
    convention and the metrics (`gate`) of their protocol.
    """
    printed = metrics.printed_metrics(pairs["ssim"], pairs["gate"])
    asked = {key: printed[key] for key in pairs["gate"]}
    reasons = _unusable(challenger, pairs["buckets"], asked, "the challenger")
    if champion is not None:
        reasons += _unusable(champion, pairs["buckets"], asked, "the champion")
        if not reasons and challenger[0]["name"].to_pylist() != champion[0]["name"].to_pylist():
            reasons.append("the champion was scored on other pairs: promote with repin=true")
        if (n := pc.count_distinct(challenger[0]["key"]).as_py()) < intervals.FEWEST:
            reasons.append(f"an interval needs {intervals.FEWEST} images, the pairs have {n}")
        reasons += [
            f"{key} of the champion used other weights: promote with repin=true fresh=true"
            for key, metric in asked.items()
            if _weights(challenger, metric) != _weights(champion, metric)
        ]
    if reasons:
        return reasons, {}
    floors = {"psnr": rules.floor_psnr, "ssim": rules.floor_ssim}
    tolerances = {key: metric.tolerance for key, metric in asked.items()}
    tolerances["psnr"] = rules.tolerance
    places = [(b, k) for b in pairs["buckets"] for k, m in asked.items() if not m.of_sets]
    places += [(ALL, key) for key, metric in asked.items() if metric.of_sets]
    figures: dict[str, Any] = {}
    for place, key in places:
        metric, row = asked[key], figures.setdefault(place, {})
        ours = _values(challenger, place, metric)
        row[key] = float(ours.mean())
        if row[key] < floors.get(key, -np.inf):
            value = f"{row[key]:.{metric.digits}f}"
            reasons.append(f"{place}: {key} {value} is below the floor of {floors[key]:g}")
        if champion is None:
            continue
        gain = intervals.paired_bootstrap(ours, _values(champion, place, metric))
        row[f"{key}_difference"] = gain["difference"]
        if not metric.of_sets:
            row[f"{key}_ci"] = gain["ci"]
        if worse := _worse(key, metric.direction, gain, tolerances[key]):
            reasons.append(f"{place}: {worse}")
    if champion is not None and "psnr" in asked:
        gain = intervals.paired_bootstrap(
            results.per_image(challenger[0]), results.per_image(champion[0])
        )
        figures["mean"] = {"psnr_difference": gain["difference"], "psnr_ci": gain["ci"]}
        if worse := _worse("psnr", 1, gain, rules.bound):
            reasons.append(f"mean over buckets: {worse}")
    return reasons, figures


def _unusable(
    scored: Scored, buckets: list[str], asked: Mapping[str, Metric], who: str
) -> list[str]:
    table, facts = scored
    missing = sorted(set(buckets) - set(table["bucket"].to_pylist()))
    reasons = [f"{who} has no scores of {bucket}" for bucket in missing]
    for key, metric in asked.items():
        if metric.of_sets:
            if not np.isfinite(_of_sets(scored, key)):
                reasons.append(f"{who} has no {key}: {facts.get('notes', {}).get(key, 'missing')}")
            continue
        values = table[metric.name].to_numpy(zero_copy_only=False).astype(float)
        if bad := int((~np.isfinite(values)).sum()):
            reasons.append(f"{who} has {bad} pairs with a missing or non-finite {metric.name}")
    return reasons


def _values(scored: Scored, place: str, metric: Metric) -> NDArray[np.float64]:
    """Return the values of a bucket's pairs, or the one value of a metric of two sets."""
    if metric.of_sets:
        return np.array([_of_sets(scored, metric.key)])
    part = scored[0].filter(pc.equal(scored[0]["bucket"], place))
    return part[metric.name].to_numpy()


def _weights(scored: Scored, metric: Metric) -> list[str | None]:
    return [scored[1].get("metric_weights", {}).get(name) for name in metric.needs]


def _of_sets(scored: Scored, key: str) -> float:
    of_sets = scored[1].get("sets") or {sets.ALL: {}}
    return of_sets.get(sets.ALL, next(iter(of_sets.values()))).get(key, np.nan)


def _worse(name: str, direction: int, gain: Mapping[str, Any], tolerance: float) -> str:
    """Say that a loss is larger than the tolerance, or may be; empty if it is not."""
    low, high = gain["ci"]
    worst, best = (low, high) if direction > 0 else (-high, -low)
    if worst >= -tolerance:
        return ""
    verdict = "is worse" if best < 0 else "is not shown to be as good"
    return (
        f"{name} {verdict}: {gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}] against a "
        f"tolerance of {tolerance:g}"
    )
