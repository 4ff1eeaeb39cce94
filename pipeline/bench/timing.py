"""What every benchmark shares: rows measured in turn inside one run, and the shape of the result.

A machine's speed drifts; ratios of rows that took turns do not. CPU seconds, children included,
drift least, so loaders are compared by them.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from pipeline.common.environment import core_count, cpu_name

REPETITIONS = 5


def cpu_seconds() -> float:
    """CPU time of this process and of the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def alternate(
    rows: Mapping[str, Callable[[], Iterator[int]]],
    repetitions: int = REPETITIONS,
    sliced: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Runs the rows in turn, `repetitions` rounds after one that is not counted.

    A row yields how many items each of its steps did. The rows named in `sliced` (those that work
    in this thread alone) take turns step by step, so that they share whatever else the machine
    does. Gives {name, items, seconds, cpu_seconds, items_per_cpu_s}.
    """
    table: dict[str, dict[str, Any]] = {
        name: {"name": name, "seconds": [], "cpu_seconds": []} for name in rows
    }
    alone = [[name] for name in rows if name not in sliced]
    for turn in range(repetitions + 1):
        for group in [[name for name in rows if name in sliced], *alone]:
            for name, found in _together({name: rows[name]() for name in group}).items():
                if turn:
                    table[name]["items"] = found[0]
                    table[name]["seconds"].append(found[1])
                    table[name]["cpu_seconds"].append(found[2])
        print(f"round {turn} of {repetitions}", file=sys.stderr)
    for row in table.values():
        row["items_per_cpu_s"] = row["items"] / statistics.median(row["cpu_seconds"])
    return list(table.values())


def whole(work: Callable[[], int]) -> Callable[[], Iterator[int]]:
    """Work that is done in one step, as `alternate` takes it."""

    def steps() -> Iterator[int]:
        yield work()

    return steps


def _together(running: dict[str, Iterator[int]]) -> dict[str, tuple[int, float, float]]:
    """(items, seconds, CPU seconds) of each, a step of each in turn until all have ended."""
    spent = {name: (0, 0.0, 0.0) for name in running}
    while running:
        for name, steps in list(running.items()):
            wall, cpu = time.perf_counter(), cpu_seconds()
            items = next(steps, None)
            if items is None:
                del running[name], steps  # what ending costs is its own, too
            before = spent[name]
            spent[name] = (
                before[0] + (items or 0),
                before[1] + time.perf_counter() - wall,
                before[2] + cpu_seconds() - cpu,
            )
    return spent


def faster(rows: list[dict[str, Any]], name: str, than: str) -> float:
    """How many times the items per CPU second of `than` the row `name` does, rounds compared."""
    found = {row["name"]: row for row in rows}
    mine, theirs = found[name], found[than]
    scale = mine["items"] / theirs["items"]
    pairs = zip(mine["cpu_seconds"], theirs["cpu_seconds"])
    return float(statistics.median(scale * b / a for a, b in pairs))


def target(value: float, wanted: float, at_least: bool = True) -> dict[str, Any]:
    met = value >= wanted if at_least else value <= wanted
    return {"value": value, "target": wanted, "met": met}


def report(
    bench: str,
    work: Mapping[str, Any],
    rows: list[dict[str, Any]],
    ratios: Mapping[str, float],
    targets: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The result as `--json` prints it; the table goes to stderr."""
    for row in rows:
        rate = f"{row['items_per_cpu_s']:>12,.0f} /CPU-s" if "items_per_cpu_s" in row else ""
        print(f"{row['name']:<34}{rate}", file=sys.stderr)
    for name, value in ratios.items():
        print(f"{name:<50}{value:.3f}", file=sys.stderr)
    for name, goal in targets.items():
        met = "met" if goal["met"] else "MISSED"
        print(f"{name:<50}{goal['value']:.3f} of {goal['target']} {met}", file=sys.stderr)
    return {
        "bench": bench,
        "device": {
            "cpu": cpu_name(),
            "cores": core_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "work": dict(work),
        "rows": rows,
        "ratios": dict(ratios),
        "targets": dict(targets),
    }
