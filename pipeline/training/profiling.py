"""`train profile=N`: a trace of N steps of rank 0, and the ten operations that took longest.

<run>/profile/trace.json.gz     for chrome://tracing or ui.perfetto.dev
              operations.txt    sorted by their own time on the device; also MLflow artifacts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.runs.folder import RunFolder
from shards import store

BEFORE = 3  # steps that are not recorded: kernels are chosen in the first ones
ROWS = 10


@contextmanager
def profiled(
    run: RunFolder, tracker: Any, steps: int, on_gpu: bool
) -> Iterator[Callable[[], None]]:
    """Yield what is to be called at each step's end. steps: 0 for none."""
    if not steps:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        folder = run.local / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        store.write(str(folder / "operations.txt"), table.encode())
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        for name in ("operations.txt", "trace.json.gz"):
            tracker.artifact(f"profile/{name}", (folder / name).read_bytes())

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(wait=BEFORE - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write) as running:
        yield running.step
