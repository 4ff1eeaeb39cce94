"""Shared by all benchmarks: rows measured in turn inside one run, and the shape of the result.

The speed of a machine drifts; ratios of rows that took turns do not. CPU seconds, children
included, drift least, so loaders are compared by them.
"""

import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.common.console import say
from pipeline.common.environment import core_count, cpu_name
from pipeline.training.progress import peak_memory_mb

REPETITIONS = 5


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def now() -> float:
    """Return the clock in seconds once the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rounds(repetitions: int) -> Iterator[bool]:
    """Yield whether a round counts: False for one of warm-up, then `repetitions` times True."""
    for turn in range(repetitions + 1):
        yield turn > 0
        say(f"round {turn} of {repetitions}")


def reset_peak() -> None:
    """Begin to measure the peak memory anew: the GPU's, or on Linux this process's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    return int(1e6 * peak_memory_mb())


def alternate(
    rows: Mapping[str, Callable[[], int]], repetitions: int = REPETITIONS
) -> list[dict[str, Any]]:
    """Run the rows in turn, `repetitions` rounds after one of warm-up.

    A row returns how many items it did. Returns {name, items, seconds, cpu_seconds, peak_bytes,
    items_per_cpu_s} of each row; the peak is that of the whole process, without its children.
    """
    table: dict[str, dict[str, Any]] = {
        name: {"name": name, "seconds": [], "cpu_seconds": [], "peak_bytes": 0} for name in rows
    }
    for counts in rounds(repetitions):
        for name, work in rows.items():
            row = table[name]
            reset_peak()
            wall, cpu = now(), cpu_seconds()
            row["items"] = work()
            wall, cpu = now() - wall, cpu_seconds() - cpu
            if counts:
                row["seconds"].append(wall)
                row["cpu_seconds"].append(cpu)
                row["peak_bytes"] = max(row["peak_bytes"], peak_bytes())
    for row in table.values():
        row["items_per_cpu_s"] = row["items"] / statistics.median(row["cpu_seconds"])
    return list(table.values())


def faster(rows: list[dict[str, Any]], name: str, than: str, clock: str = "cpu_seconds") -> float:
    """Return items per second of `name` over those of `than`: the median over rounds."""
    named = {row["name"]: row for row in rows}
    mine, theirs = named[name], named[than]
    scale = mine["items"] / theirs["items"]
    pairs = zip(mine[clock], theirs[clock])
    return float(statistics.median(scale * b / a for a, b in pairs))


def compare(
    rows: list[dict[str, Any]],
    pairs: Mapping[str, tuple[str, str, float | None]],
    clock: str = "cpu_seconds",
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Return ratio and target of each {ratio: (row, baseline, target or None)} whose rows exist."""
    names = {row["name"] for row in rows}
    ratios, targets = {}, {}
    for ratio, (mine, theirs, wanted) in pairs.items():
        if {mine, theirs} <= names:
            ratios[ratio] = faster(rows, mine, theirs, clock)
            if wanted is not None:
                targets[ratio] = target(ratios[ratio], wanted)
    return ratios, targets


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
    """Return the result as `bench --json` prints it."""
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
