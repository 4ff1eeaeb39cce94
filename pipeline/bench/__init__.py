"""`bench WHAT`: two ways of doing the same work, in one run; ratios, never bare seconds."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pipeline.config.schema import BenchConfig


def main(config: BenchConfig) -> dict[str, Any]:
    """`{"bench", "device", "work", "rows", "ratios", "targets"}`, as the design has it."""
    return import_module(f"pipeline.bench.{config.what}").run()


def show(result: dict[str, Any]) -> str:
    lines = [f"{result['bench']} on {result['device']}: {result['work']}"]
    for row in result["rows"]:
        seconds = sorted(row["seconds"])
        lines.append(f"  {row['name']:<28}{seconds[len(seconds) // 2]:>12.4g} s")
    lines += [f"  {name:<28}{value:>12.4g} x" for name, value in result["ratios"].items()]
    for name, target in result["targets"].items():
        met = "met" if target["met"] else "MISSED"
        lines.append(f"  {name:<28}{target['value']:>12.4g}   target {target['target']}: {met}")
    return "\n".join(lines)
