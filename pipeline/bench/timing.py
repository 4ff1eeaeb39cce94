"""Shared by all benchmarks: rows measured in turn inside one run, and the shape of the result.

The speed of a machine drifts; ratios of rows that took turns do not. CPU seconds, children
included, drift least, so loaders are compared by them.
"""

import resource
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from pipeline.common.console import say
from pipeline.common.environment import core_count, cpu_name

REPETITIONS = 5


def cpu_seconds() -> float:
    """CPU time of this process and of the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def now() -> float:
    """Seconds of the clock once the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rounds(repetitions: int) -> Iterator[bool]:
    """Whether a round counts: False for one of warm-up, then `repetitions` times True."""
    for turn in range(repetitions + 1):
        yield turn > 0
        say(f"round {turn} of {repetitions}")


def alternate(
    rows: Mapping[str, Callable[[], Iterator[int]]],
    repetitions: int = REPETITIONS,
    sliced: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Run the rows in turn, `repetitions` rounds after one of warm-up.

    A row yields how many items each of its steps did. The rows named in `sliced` (those that work
    in this thread alone) take turns step by step, so that other work on the machine slows all of
    them alike. Returns {name, items, seconds, cpu_seconds, items_per_cpu_s} of each row.
    """
    table: dict[str, dict[str, Any]] = {
        name: {"name": name, "seconds": [], "cpu_seconds": []} for name in rows
    }
    alone = [[name] for name in rows if name not in sliced]
    for counts in rounds(repetitions):
        for group in [[name for name in rows if name in sliced], *alone]:
            steps = {name: rows[name]() for name in group}
            for name, (items, seconds, cpu) in _together(steps).items():
                if counts:
                    table[name]["items"] = items
                    table[name]["seconds"].append(seconds)
                    table[name]["cpu_seconds"].append(cpu)
    for row in table.values():
        row["items_per_cpu_s"] = row["items"] / statistics.median(row["cpu_seconds"])
    return list(table.values())


def whole(work: Callable[[], int]) -> Callable[[], Iterator[int]]:
    """A row of one step that does all of `work`."""

    def steps() -> Iterator[int]:
        yield work()

    return steps


def _together(running: dict[str, Iterator[int]]) -> dict[str, tuple[int, float, float]]:
    """(items, seconds, CPU seconds) of each row, one step of each in turn until all have ended."""
    spent = {name: (0, 0.0, 0.0) for name in running}
    while running:
        for name, steps in list(running.items()):
            wall, cpu = time.perf_counter(), cpu_seconds()
            items = next(steps, None)
            if items is None:
                del running[name], steps  # the row pays for its own end, too
            before = spent[name]
            spent[name] = (
                before[0] + (items or 0),
                before[1] + time.perf_counter() - wall,
                before[2] + cpu_seconds() - cpu,
            )
    return spent


def faster(rows: list[dict[str, Any]], name: str, than: str, clock: str = "cpu_seconds") -> float:
    """Items per second of `name` over those of `than`: the median over rounds."""
    named = {row["name"]: row for row in rows}
    mine, theirs = named[name], named[than]
    scale = mine["items"] / theirs["items"]
    pairs = zip(mine[clock], theirs[clock])
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
    """The result as `bench --json` prints it."""
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
