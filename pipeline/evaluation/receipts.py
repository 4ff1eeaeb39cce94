"""Receipts: what a number was measured on and with."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation import metrics

MODEL = "model"  # the part that may differ in a column of numbers


def receipt(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the receipt of the metric that results call `key`, from the facts of a results file.

    code: the version of this package; None in files of versions without receipts.
    """
    metric = metrics.record(key)
    short, weights = facts.get("resize_short"), facts.get("metric_weights", {})
    return {
        "pairs": facts["pairs_digest"],
        "masks": facts.get("masks"),
        "weights": {name: weights.get(name) for name in metric.needs},
        "n": facts["pairs"],
        "size": facts["size"],
        "resize": f"short side to {short}" if short else "as stored",
        "region": "composite",
        "convention": facts["ssim"] if key == "ssim" else metric.how,
        "code": facts.get("code"),
        MODEL: model(facts),
    }


def model(facts: Mapping[str, Any]) -> str:
    """Return the part that says what was scored."""
    if "predictions" in facts:
        return f"images with sha256 {facts.get('sha256')}; weights and code were not verified"
    return f"weights with sha256 {facts['sha256']}" if "sha256" in facts else "no weights"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the parts in which the receipts of two models' numbers differ."""
    return [part for part in one if part != MODEL and one[part] != other[part]]


def as_text(parts: Mapping[str, Any]) -> str:
    """Return a receipt on one line."""
    weights = ", ".join(f"{name} {sha}" for name, sha in parts["weights"].items()) or "none"
    return "; ".join(f"{part} {v}" for part, v in {**parts, "weights": weights}.items())
