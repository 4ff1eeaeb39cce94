"""A child command and all that it starts: attended to its end, whatever happens to this process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from typing import IO

import psutil

from pipeline.launch.workers import die_with_parent

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def attended(
    command: list[str], environment: Mapping[str, str], stdout: IO[str]
) -> tuple[int, float]:
    """Exit status of `command`, and the peak of the memory of its processes together in MB.

    Requests to stop are passed on, and its own end is waited for: what saves, saves. It is killed
    by the kernel when this process is.
    """
    child = subprocess.Popen(
        command, env=environment, stdout=stdout, preexec_fn=die_with_parent, process_group=0
    )
    before = {n: signal.signal(n, lambda got, _: child.send_signal(got)) for n in STOPS}
    peak = 0.0
    try:
        while True:
            try:
                return child.wait(0.5), peak
            except subprocess.TimeoutExpired:
                peak = max(peak, memory_mb(child.pid))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, pages that they share counted in each."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6
