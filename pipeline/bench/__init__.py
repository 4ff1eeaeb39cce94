"""`bench WHAT`: compare ways of doing the same work within one run, as ratios."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import Any

from pipeline.common.console import table
from pipeline.config.schema import BenchConfig


def main(config: BenchConfig) -> dict[str, Any]:
    """Run one benchmark; returns `{"bench", "device", "work", "rows", "ratios", "targets"}`."""
    return import_module(f"pipeline.bench.{config.what}").run()


def show(result: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            f"{median(row['seconds']):.4g} s",
            f"{row['items_per_cpu_s']:,.0f} /CPU-s" if "items_per_cpu_s" in row else "",
        )
        for row in result["rows"]
    ]
    rows += [(name, f"{value:.4g} x", "") for name, value in result["ratios"].items()]
    for name, target in result["targets"].items():
        met = "met" if target["met"] else "MISSED"
        rows.append((name, f"{target['value']:.4g}", f"target {target['target']}: {met}"))
    head = f"{result['bench']} on {result['device']}: {result['work']}"
    return "\n".join([head, *(f"  {line}" for line in table(rows, "<><"))])
