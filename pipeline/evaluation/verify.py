"""`evaluate verify=FILE`: evaluate again what a results file says, and compare the scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import groups
from pipeline.config.compose import compose
from pipeline.config.resolve import to_yaml
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import metrics, results
from pipeline.evaluation.receipts import receipt
from shards import store

TOLERANCE = 1e-5  # relative; another CPU or batch rounds otherwise


def reproducible(config: EvaluateConfig, facts: Mapping[str, Any]) -> str:
    """Return the part of the configuration that the scores depend on, without credentials.

    facts: name what was scored where the configuration says last, best or champion.
    """
    kept = ("checkpoint", "model", "predictions", "data", "masks", "protocol", "split", "weights")
    same = EvaluateConfig(**{k: getattr(config, k) for k in (*kept, "batch", "limit", "metrics")})
    if scored := facts.get("url", facts.get("model_uri")):
        setattr(same, "checkpoint" if config.checkpoint else "model", scored)
    text = to_yaml(replace(same, images=0, tracking=groups.RecordConfig(enabled=False)))
    for url in (config.data.url, config.masks.url):
        text = text.replace(url, store.display(url)) if url else text
    return text


def verify(
    url: str, evaluate: Callable[[EvaluateConfig], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Repeat the evaluation that the results file at `url` records.

    Returns `{"verified", "differences"}`; None as `evaluate` does.
    Raises ValueError for a file without a configuration.
    """
    table, facts = results.load(url)
    if "config" not in facts:
        raise ValueError(
            f"{store.display(url)} was written by an older version, which recorded no "
            "configuration: evaluate again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "config.yaml")
        path.write_text(facts["config"])
        words = [f"config={path}", f"out={scratch}/again.parquet"]
        if evaluate(compose("evaluate", words).config) is None:
            return None
        again, new = results.load(f"{scratch}/again.parquet")
    changes = []
    for key in metrics.printed_metrics(facts["ssim"], facts.get("metrics", ())):
        old_parts, new_parts = receipt(facts, key), receipt(new, key)
        parts = [part for part in old_parts if old_parts[part] != new_parts[part]]
        changes += [f"{key}: another {part}" for part in parts]
        note = new.get("notes", {}).get(key)
        if note not in (None, facts.get("notes", {}).get(key)):
            changes.append(f"{key}: {note}")
    if table["name"] == again["name"]:
        changes += _other_scores(table, again)
    for name, row in facts.get("sets", {}).items():
        for key, value in row.items():
            other = new.get("sets", {}).get(name, {}).get(key, np.nan)
            if not np.isclose(value, other, TOLERANCE, TOLERANCE):
                changes.append(f"{key} of {name}: {value:.6g} in the file, now {other:.6g}")
    return {"verified": url, "differences": changes}


def _other_scores(table: pa.Table, again: pa.Table) -> list[str]:
    changes = []
    for metric in metrics.METRICS:
        old, new = (np.asarray(t[metric.name].to_numpy(), float) for t in (table, again))
        same = np.isclose(old, new, TOLERANCE, TOLERANCE, equal_nan=True)
        if not same.all():
            first = int(same.argmin())
            changes.append(
                f"{metric.name}: {(~same).sum()} of {len(same)} pairs, first "
                f"{table['name'][first]}: {old[first]:.6g} in the file, now {new[first]:.6g}"
            )
    return changes
