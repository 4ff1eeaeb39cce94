"""Decide whether a model may replace the champion: a pure function of two per-image score tables.

Both tables hold the same images with the same holes: differences are taken pair by pair, and their
mean has a bootstrap interval. "Not worse" must be shown: the lower end of the interval must lie
above minus the tolerance, so too few pairs fail the gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.evaluation import intervals, metrics, results


@dataclass(frozen=True)
class Rules:
    """dB of PSNR and units of SSIM; `bound` for the mean over buckets, `tolerance` in each one."""

    tolerance: float = 0.10
    bound: float = 0.02
    ssim_tolerance: float = 0.002
    floor_psnr: float = 12.0
    floor_ssim: float = 0.30


def decide(
    challenger: pa.Table,
    champion: pa.Table | None,
    buckets: list[str],
    ssim: str,
    rules: Rules,
) -> tuple[list[str], dict[str, Any]]:
    """Return the reasons against the challenger (none: it passes) and the figures behind them.

    Without a champion only the floors apply. ssim: the convention of the protocol.
    """
    printed = metrics.printed_metrics(ssim)
    columns = {key: printed[key].name for key in ("psnr", "ssim")}
    reasons = _unusable(challenger, buckets, list(columns.values()), "the challenger")
    if champion is not None:
        reasons += _unusable(champion, buckets, list(columns.values()), "the champion")
        if not reasons and challenger["name"].to_pylist() != champion["name"].to_pylist():
            reasons.append("the champion was scored on other pairs: promote with repin=true")
    if reasons:
        return reasons, {}
    figures: dict[str, Any] = {}
    for bucket in buckets:
        ours = _values(challenger, bucket, columns)
        row = {name: float(values.mean()) for name, values in ours.items()}
        for name, floor in (("psnr", rules.floor_psnr), ("ssim", rules.floor_ssim)):
            if row[name] < floor:
                value = f"{row[name]:.{printed[name].digits}f}"
                reasons.append(f"{bucket}: {name} {value} is below the floor of {floor:g}")
        figures[bucket] = row
        if champion is None:
            continue
        theirs = _values(champion, bucket, columns)
        for name, tolerance in (("psnr", rules.tolerance), ("ssim", rules.ssim_tolerance)):
            gain = intervals.paired_bootstrap(ours[name], theirs[name])
            row[f"{name}_difference"], row[f"{name}_ci"] = gain["difference"], gain["ci"]
            if gain["ci"][0] < -tolerance:
                reasons.append(f"{bucket}: {_worse(name, gain, tolerance)}")
    if champion is not None:
        gain = intervals.paired_bootstrap(
            results.per_image(challenger), results.per_image(champion)
        )
        figures["mean"] = {"psnr_difference": gain["difference"], "psnr_ci": gain["ci"]}
        if gain["ci"][0] < -rules.bound:
            reasons.append(f"mean over buckets: {_worse('psnr', gain, rules.bound)}")
    return reasons, figures


def _unusable(table: pa.Table, buckets: list[str], columns: list[str], who: str) -> list[str]:
    missing = sorted(set(buckets) - set(table["bucket"].to_pylist()))
    reasons = [f"{who} has no scores of {bucket}" for bucket in missing]
    for column in columns:
        values = table[column].to_numpy(zero_copy_only=False).astype(float)
        if bad := int((~np.isfinite(values)).sum()):
            reasons.append(f"{who} has {bad} pairs with a missing or non-finite {column}")
    return reasons


def _values(
    table: pa.Table, bucket: str, columns: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    part = table.filter(pc.equal(table["bucket"], bucket))
    return {name: part[column].to_numpy() for name, column in columns.items()}


def _worse(name: str, gain: Mapping[str, Any], tolerance: float) -> str:
    low, high = gain["ci"]
    verdict = "is worse" if high < 0 else "is not shown to be as good"
    return (
        f"{name} {verdict}: {gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}] against a "
        f"tolerance of {tolerance:g}"
    )
