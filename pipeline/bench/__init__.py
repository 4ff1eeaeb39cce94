"""`bench WHAT`: compare ways of doing the same work within one run, as ratios."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import Any

from pipeline.config.schema import BenchConfig


def main(config: BenchConfig) -> dict[str, Any]:
    """Run one benchmark; returns `{"bench", "device", "work", "rows", "ratios", "targets"}`."""
    return import_module(f"pipeline.bench.{config.what}").run()


def show(result: dict[str, Any]) -> str:
    lines = [f"{result['bench']} on {result['device']}: {result['work']}"]
    for row in result["rows"]:
        rate = f"{row['items_per_cpu_s']:>14,.0f} /CPU-s" if "items_per_cpu_s" in row else ""
        lines.append(f"  {row['name']:<50}{median(row['seconds']):>12.4g} s{rate}")
    lines += [f"  {name:<50}{value:>12.4g} x" for name, value in result["ratios"].items()]
    for name, target in result["targets"].items():
        met = "met" if target["met"] else "MISSED"
        lines.append(f"  {name:<50}{target['value']:>12.4g}   target {target['target']}: {met}")
    return "\n".join(lines)
