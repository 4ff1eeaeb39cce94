"""Start and stop one node's workers together, and explain a failure in one line.

The kernel kills the workers when this process dies. Unless stderr is a terminal, their output also
goes to a log in the run's folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

from jobs.cause import cause
from pipeline.common.console import say
from pipeline.common.environment import COMMAND, command_line
from pipeline.common.signals import STOP_SIGNALS, handled
from pipeline.config.resolve import to_yaml
from pipeline.launch.output import ERROR_FILE, output, record_error
from pipeline.launch.topology import Place

# Exit statuses of workers that a signal ended: one with something to save has a handler.
STOPPED = tuple(-number for number in STOP_SIGNALS)
PR_SET_PDEATHSIG = 1
EARLY = "before there was anything to save"
CRASHED = 30.0  # seconds until the others are killed: an NCCL collective would never return


class Ended(NamedTuple):
    """How a node's workers ended: an exit status and, after a failure, its first error."""

    status: int
    error: str | None = None


def run_workers(
    command: str,
    config: Any,
    here: Place,
    name: str = "config",
    log: str | None = None,
    early: str = EARLY,
) -> Ended:
    """Run this node's workers of a command on a resolved configuration, to their end.

    name: of the configuration's file, by which `ps` shows what a worker belongs to.
    """
    with tempfile.TemporaryDirectory(prefix="lacuna-") as folder:
        path = Path(folder, f"{name}.yaml")
        path.write_text(to_yaml(config))
        words = [sys.executable, "-m", "pipeline", command, f"config={path}"]
        return supervise(words, here.workers, log, here.grace, early)


def supervise(
    command: list[str],
    workers: Sequence[Mapping[str, str]],
    log: str | None = None,
    grace: float = 120.0,
    early: str = EARLY,
) -> Ended:
    """Run `command` once for each environment in `workers`, in order of local rank.

    Stop signals are passed on, and workers have `grace` seconds to save; one without a handler has
    nothing to save yet, and ends. When a worker fails the others cannot make a checkpoint without
    it: they get `CRASHED` seconds to publish one that is complete.

    log: URL of the node's log.
    early: end of the message about workers that were stopped before they could save.
    """
    stop: list[int] = []
    started: list[subprocess.Popen[bytes]] = []
    first: list[int] = []
    deadline = None
    with (
        tempfile.TemporaryDirectory() as scratch,
        output(log) as writing,
        handled(STOP_SIGNALS, lambda number, _: stop.append(number)),
    ):
        errors = [Path(scratch, str(i)) for i in range(len(workers))]
        environment = {**os.environ, COMMAND: command_line()}
        try:
            for i, worker in enumerate(workers):
                started.append(
                    subprocess.Popen(
                        command,
                        env={**environment, **worker, ERROR_FILE: str(errors[i])},
                        preexec_fn=partial(_prepare, os.getpid()),
                        stdout=None if i == 0 else writing or sys.stderr,
                        stderr=writing,
                    )
                )
            while any(w.poll() is None for w in started):
                failing = (None, 0, os.EX_TEMPFAIL)
                bad = [i for i, w in enumerate(started) if w.poll() not in failing]
                first = first or bad
                if deadline is None and (stop or any(w.poll() for w in started)):
                    seconds = min(grace, CRASHED) if bad and not stop else grace
                    _pass_on(started, sorted({*stop[:1], signal.SIGTERM}))
                    deadline = time.monotonic() + seconds
                if deadline is not None and time.monotonic() > deadline:
                    _pass_on(started, (signal.SIGKILL,))
                time.sleep(0.05)
        finally:
            _pass_on(started, (signal.SIGKILL,))
        statuses = [w.wait() for w in started]
        first = first or [i for i, s in enumerate(statuses) if s not in (0, os.EX_TEMPFAIL)]
        status = outcome(statuses, [statuses[i] for i in first], bool(stop))
        error = None
        if status not in (0, os.EX_TEMPFAIL):  # others' errors follow from those of the first
            lines = [_error_of(statuses[i], workers[i], errors[i]) for i in first]
            error = cause(enumerate(lines)) or lines[0]
        record_error(error or "")
        message = error
        killed = [i for i in range(len(started)) if statuses[i] < 0]
        if status == os.EX_TEMPFAIL and killed:
            number = [*stop, *(-statuses[i] for i in [*first, *killed] if i in killed)][0]
            message = f"stopped ({signal.Signals(number).name}) {early}"
        if message is not None and status != os.EX_CONFIG and writing is not None:
            os.write(writing, f"{message}\n".encode())
        elif message is not None:
            say(message)
    return Ended(status, error)


def outcome(statuses: list[int], first: list[int], asked: bool = False) -> int:
    """Return the node's exit status: 78 if any worker has it, else 75, 0 or 1.

    A worker that was killed while the others saved and left with 75 has lost its state: that is 1.
    A worker that a stop signal ended had not begun, and so neither had the group; the others'
    failures follow from it if the stop was `asked` for or it was the `first` to fail. That is 75.
    """
    if os.EX_CONFIG in statuses:
        return os.EX_CONFIG
    if set(statuses) & set(STOPPED) and (asked or set(first) <= set(STOPPED)):
        return os.EX_TEMPFAIL
    return max(statuses) if set(statuses) <= {0, os.EX_TEMPFAIL} else 1


def _error_of(status: int, worker: Mapping[str, str], error: Path) -> str:
    if error.exists():
        return error.read_text().strip()
    where = f"rank {worker['RANK']} on {socket.gethostname()}"
    if status >= 0:
        return f"{where} ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = " (possibly out of memory)" if name == "SIGKILL" else ""
    return f"{where} was killed by {name}{hint}"


def _pass_on(workers: list[subprocess.Popen[bytes]], numbers: Sequence[int]) -> None:
    """Send the signals to the workers that still run."""
    for worker in workers:
        if worker.poll() is None:
            for number in numbers:
                worker.send_signal(number)
            worker.send_signal(signal.SIGCONT)  # a suspended one would not receive them


def _prepare(launcher: int) -> None:
    """Leave SIGINT, which a terminal sends to workers too, to the launcher; die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != launcher:  # it died before the call above
        os._exit(1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send `number` to this child when its parent dies; call it at its start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def attended(
    command: list[str], environment: Mapping[str, str], stdout: IO[str]
) -> tuple[int, float]:
    """Run `command`; returns its exit status and the peak memory of all its processes in MB.

    Stop signals are passed on, and the command is then waited for, so that it can save. The kernel
    kills it when this process dies.
    """
    child = subprocess.Popen(
        command, env=environment, stdout=stdout, preexec_fn=die_with_parent, process_group=0
    )
    peak = 0.0
    with handled(STOP_SIGNALS, lambda number, _: child.send_signal(number)):
        while True:
            try:
                return child.wait(0.5), peak
            except subprocess.TimeoutExpired:
                peak = max(peak, memory_mb(child.pid))


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants; shared pages count in each."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # it has just ended; the others count
                total += process.memory_info().rss
    return total / 1e6
