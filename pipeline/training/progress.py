"""Training progress: speed, data wait, losses. Live on a terminal, else a line every 30 s."""

from __future__ import annotations

import resource
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.common.console import say

PLAIN_EVERY = 30.0
WINDOW = 200
WARM_UP = 3
NOTABLE_WAIT = 0.05  # fraction of data wait from which it is shown


class Step(NamedTuple):
    images: int
    seconds: float
    wait: float  # for data, of these seconds
    cpu: float  # seconds of the training thread


class Meter:
    """Measure one process's steps; display them on rank 0 (`shown`).

    image_seconds: seconds per image at all devices' peak FLOP/s (`flops`); 0 if unknown.
    """

    def __init__(
        self,
        images_seen: int,
        max_images: int,
        shown: bool,
        processes: int = 1,
        image_seconds: float = 0.0,
    ) -> None:
        self.images_seen, self.max_images, self.processes = images_seen, max_images, processes
        self.image_seconds, self.shown = image_seconds, shown
        self._began, self._first, self._count = time.monotonic(), images_seen, 0
        self._steps: deque[Step] = deque(maxlen=WINDOW)
        self._thread, self._fastest, self._stall = time.thread_time(), float("inf"), 0.0
        self.step_ms: dict[str, float] = {}  # of each phase, the mean of its fastest cycle
        self._phase, self._cycle = "", list[float]()
        self._losses: Mapping[str, float] = {}
        self._next_line = 0.0
        self._bar = _bar(max_images) if shown and sys.stderr.isatty() else None

    def step(
        self,
        images: int,
        seconds: float,
        wait: float,
        losses: Mapping[str, float],
        phase: tuple[int, int] = (0, 1),
    ) -> None:
        """Record a step: `images` over all ranks in `seconds`, of which `wait` for data.

        losses: empty between lines of the log; the last ones remain displayed.
        phase: its number, and after how many steps its turns repeat.
        """
        self.images_seen += images
        self._count += 1
        before, self._thread = self._thread, time.thread_time()
        self._fastest = min(self._fastest, seconds)
        name, length = str(phase[0]), phase[1]
        if name != self._phase:
            self._phase, self._cycle = name, []
        self._cycle = [*self._cycle, seconds][-length:]
        if len(self._cycle) == length:
            mean = 1e3 * statistics.mean(self._cycle)
            self.step_ms[name] = min(self.step_ms.get(name, mean), mean)
        if self._count > WARM_UP:
            self._steps.append(Step(images, seconds, wait, self._thread - before))
        self._losses = losses or self._losses
        if self._bar:
            line = status_line(self, self._losses)
            self._bar.update(self._bar.task_ids[0], completed=self.images_seen, description=line)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_EVERY
            self.say(status_line(self, self._losses))

    def elsewhere(self, seconds: float, stall: bool = False) -> None:
        """Record `seconds` between steps: validation, or a checkpoint's `stall`."""
        self._thread = time.thread_time()
        if stall:
            self._stall = max(self._stall, seconds)

    def pace(self) -> dict[str, Any]:
        """Return this rank's own median milliseconds per step, for `watchdog.straggler`.

        On a GPU only the data wait: its thread spins while kernels wait for other ranks.
        """
        waits = [s.wait for s in self._steps] or [0.0]
        cpu = [0.0 if torch.cuda.is_available() else s.cpu for s in self._steps] or [0.0]
        medians = {"wait": 1e3 * statistics.median(waits), "cpu": 1e3 * statistics.median(cpu)}
        return {"host": socket.gethostname(), **medians}

    @property
    def rate(self) -> float:
        """Images per second in training steps, over the window and all ranks; 0 in warm-up."""
        return sum(s.images for s in self._steps) / self._spent if self._steps else 0.0

    @property
    def waiting(self) -> float:
        """Fraction of the window's time spent waiting for data."""
        return sum(s.wait for s in self._steps) / self._spent if self._steps else 0.0

    @property
    def _spent(self) -> float:
        return sum(s.seconds for s in self._steps)

    def values(self) -> dict[str, float]:
        """Return the `perf/*` metrics; none before the first step."""
        if not self._count:
            return {}
        rate = (self.images_seen - self._first) / (time.monotonic() - self._began)
        values = {
            "perf/images_per_s": rate,
            "perf/images_per_s_process": rate / self.processes,
            "perf/checkpoint_stall_ms": 1e3 * self._stall,
            "perf/peak_memory_mb": peak_memory_mb(),
            "perf/step_ms_min": 1e3 * self._fastest,
        }
        if self.rate:  # not during warm-up
            values["perf/images_per_s_train"] = self.rate
            values["perf/images_per_s_train_process"] = self.rate / self.processes
        if self.rate and self.image_seconds:
            values["perf/mfu"] = self.rate * self.image_seconds
        if len(self._steps) > 1:
            times = [1e3 * s.seconds for s in self._steps]
            values["perf/step_ms_p50"] = statistics.median(times)
            values["perf/step_ms_p95"] = statistics.quantiles(times, n=20, method="inclusive")[18]
            values["perf/data_wait"] = self.waiting
        return values

    def say(self, line: str) -> None:
        """Print a line on rank 0, above the progress bar if there is one."""
        if self._bar:
            with suppress(OSError):  # the terminal was closed
                self._bar.console.print(line, highlight=False, markup=False)
        elif self.shown:
            say(line)

    def close(self) -> None:
        if self._bar:
            with suppress(OSError):
                self._bar.stop()


def peak_memory_mb() -> float:
    """Return the peak memory of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError):  # Linux; getrusage counts what the parent had used before exec, too
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def status_line(meter: Meter, losses: Mapping[str, float]) -> str:
    """Format one line: progress, speed, time left, losses."""
    words = [f"{meter.images_seen}/{meter.max_images} images"]
    if meter.rate:  # not during warm-up, which is slower
        left = max(0, meter.max_images - meter.images_seen) / meter.rate
        words += [f"{meter.rate:.1f}/s", f"{timedelta(seconds=int(left))} left"]
        if meter.waiting > NOTABLE_WAIT:
            words.append(f"waiting for data {meter.waiting:.0%}")
    return "  ".join([*words, format_metrics(losses)] if losses else words)


def format_metrics(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _bar(total: int) -> Any:
    """Start a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=total)
    bar.start()
    return bar


@dataclass
class TrainState:
    """The run's progress; with the networks' states, all that a resume needs."""

    images_seen: int = 0
    skipped: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # the set of the data position
