"""One node's workers: started together, stopped together, their end explained in one line.

Workers are killed by the kernel when this process dies. Where stderr is no terminal their output
also goes to a log in the run's folder.
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
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from jobs.cause import cause
from pipeline.common.signals import STOP_SIGNALS, handled
from pipeline.launch.output import ERROR_FILE, output, record_error

STOPPED = tuple(-number for number in STOP_SIGNALS)  # statuses: what it had to save has a handler
PR_SET_PDEATHSIG = 1
CRASHED = 30.0  # seconds: over NCCL those left behind would wait in an exchange for ever


class Ended(NamedTuple):
    """How a node's workers ended: an exit status and, after a failure, what came first."""

    status: int
    error: str | None = None


def supervise(
    command: list[str],
    workers: Sequence[Mapping[str, str]],
    log: str | None = None,
    grace: float = 120.0,
    early: str = "before there was anything to save",
) -> Ended:
    """Run `command` once for each environment in `workers`, in order of local rank.

    Signals are passed on, and workers have `grace` seconds to save; one without a handler for them
    has nothing to save yet, and ends. When one ends badly the others can make no checkpoint without
    it: they get `CRASHED` seconds to publish the one in hand.
    `log`: URL of the node's log; `early`: what it says there of workers stopped before all else.
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
        try:
            for i, worker in enumerate(workers):
                environment = {**os.environ, **worker, ERROR_FILE: str(errors[i])}
                stdout = None if i == 0 else writing or sys.stderr
                started.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        preexec_fn=partial(_prepare, os.getpid()),
                        stdout=stdout,
                        stderr=writing,
                    )
                )
            while any(w.poll() is None for w in started):
                bad = [
                    i for i, w in enumerate(started) if w.poll() not in (None, 0, os.EX_TEMPFAIL)
                ]
                first = first or bad
                if deadline is None and (stop or any(w.poll() for w in started)):
                    given = min(grace, CRASHED) if bad and not stop else grace
                    deadline = _pass_on(started, sorted({*stop[:1], signal.SIGTERM}), given)
                if deadline is not None and time.monotonic() > deadline:
                    _pass_on(started, (signal.SIGKILL,), 0)
                time.sleep(0.05)
        finally:
            _pass_on(started, (signal.SIGKILL,), 0)
        statuses = [w.wait() for w in started]
        status = outcome(statuses, [statuses[i] for i in first], bool(stop))
        error = None if status in (0, os.EX_TEMPFAIL) else _cause(first, statuses, workers, errors)
        record_error(error or "")
        told = error
        if status == os.EX_TEMPFAIL and (
            ended := [i for i in range(len(started)) if statuses[i] < 0]
        ):
            got = [*stop, *(-statuses[i] for i in [*first, *ended] if i in ended)][0]
            told = f"stopped ({signal.Signals(got).name}) {early}"
        if told is not None and status != os.EX_CONFIG and writing is not None:
            os.write(writing, f"{told}\n".encode())
        elif told is not None:
            print(told, file=sys.stderr, flush=True)
    return Ended(status, error)


def outcome(statuses: list[int], first: list[int] | None = None, asked: bool = False) -> int:
    """The node's exit status from its workers': the first of 78, 75 that any had, else 0 or 1.

    A worker killed while the others saved and left with 75 was lost, not saved: that is 1. One that
    a request to stop ended had not begun, and so the group had not: the others' ends follow from
    it, where it was `asked` or was the `first` to end badly. That is 75.
    """
    if os.EX_CONFIG in statuses:
        return os.EX_CONFIG
    led = STOPPED if asked else first or [s for s in statuses if s not in (0, os.EX_TEMPFAIL)]
    if set(statuses) & set(STOPPED) and set(led) <= set(STOPPED):
        return os.EX_TEMPFAIL
    if all(status == 0 for status in statuses):
        return 0
    if all(status in (0, os.EX_TEMPFAIL) for status in statuses):
        return os.EX_TEMPFAIL
    return 1


def _cause(
    first: list[int], statuses: list[int], workers: Sequence[Mapping[str, str]], errors: list[Path]
) -> str:
    """The line of a worker that failed first; what the others said follows from its death."""
    bad = first or [i for i, status in enumerate(statuses) if status not in (0, os.EX_TEMPFAIL)]
    said = [_said(statuses[i], workers[i], errors[i]) for i in bad]
    return cause(enumerate(said)) or said[0]


def _said(status: int, worker: Mapping[str, str], error: Path) -> str:
    if error.exists():
        return error.read_text().strip()
    where = f"rank {worker['RANK']} on {socket.gethostname()}"
    if status >= 0:
        return f"{where} ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = " (by hand, or for want of memory)" if name == "SIGKILL" else ""
    return f"{where} was killed by {name}{hint}"


def _pass_on(workers: list[subprocess.Popen[bytes]], numbers: Sequence[int], grace: float) -> float:
    for worker in workers:
        if worker.poll() is None:
            for number in numbers:
                worker.send_signal(number)
            worker.send_signal(signal.SIGCONT)  # one that is stopped would not hear it
    return time.monotonic() + grace


def _prepare(launcher: int) -> None:
    """A terminal sends SIGINT to workers too: it is for the launcher until they listen to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != launcher:  # it died before the kernel knew
        os._exit(1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Run in a child before its program: it then gets signal `number` when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


# --- what the workers say -------------------------------------------------------------------------


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
    peak = 0.0
    with handled(STOP_SIGNALS, lambda number, _: child.send_signal(number)):
        while True:
            try:
                return child.wait(0.5), peak
            except subprocess.TimeoutExpired:
                peak = max(peak, memory_mb(child.pid))


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
