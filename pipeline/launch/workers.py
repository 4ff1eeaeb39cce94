"""Start and stop one node's workers together, explain a failure in one line, start them again.

The kernel kills the workers when this process dies. Unless stderr is a terminal, their output also
goes to a log in the run's folder. Where workers may start again (`restarts`), a second group is
started ahead of time: it imports its libraries, then waits on its stdin until it is needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from pipeline.launch.restarts import Restarts
from pipeline.launch.topology import Place

# Exit statuses of workers that a signal ended: one with something to save has a handler.
STOPPED = tuple(-number for number in STOP_SIGNALS)
PR_SET_PDEATHSIG = 1
EARLY = "before there was anything to save"
CRASHED = 30.0  # seconds until the others are killed: an NCCL collective would never return
CRASHED_IN_PLACE = 10.0  # the same where they start again
PREPARE_AFTER = 30.0  # seconds from a group's start, which needs the cores, to that of the next
LASTING = os.EX_SOFTWARE  # a worker's status where the next one would fail in the same way
HELD = "LACUNA_HELD"  # set for a worker that waits until it is needed


class Ended(NamedTuple):
    """How a node's workers ended: an exit status and, after a failure, its first error."""

    status: int
    error: str | None = None


@dataclass(frozen=True)
class Worker:
    """A worker's process, its place, and the file that it writes its error to."""

    process: subprocess.Popen[bytes]
    place: Mapping[str, str]
    error: Path

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def release(self, settings: Mapping[str, str]) -> None:
        """Let a worker that waits begin, with more environment variables."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and counts as one that failed
            self.process.stdin.write(f"{json.dumps(settings)}\n".encode())
            self.process.stdin.close()

    def message(self) -> str:
        """Describe how the worker failed."""
        if self.error.exists():
            return self.error.read_text().strip()
        where = f"rank {self.place['RANK']} on {socket.gethostname()}"
        status = self.process.returncode
        if status >= 0:
            return f"{where} ended with exit status {status}"
        name = signal.Signals(-status).name
        hint = " (possibly out of memory)" if name == "SIGKILL" else ""
        return f"{where} was killed by {name}{hint}"


def wait_until_needed() -> None:
    """Wait, in a worker that was started ahead of time, for the variables of its attempt."""
    if os.environ.pop(HELD, None):
        line = sys.stdin.readline()
        if not line:  # the workers before it did all the work
            os._exit(0)
        os.environ.update(json.loads(line))


def run_workers(
    command: str,
    config: Any,
    here: Place,
    name: str = "config",
    log: str | None = None,
    early: str = EARLY,
    restarts: Restarts | None = None,
) -> Ended:
    """Run this node's workers of a command on a resolved configuration, to their end.

    name: of the configuration's file, by which `ps` shows what a worker belongs to.
    """
    with tempfile.TemporaryDirectory(prefix="lacuna-") as folder:
        path = Path(folder, f"{name}.yaml")
        path.write_text(to_yaml(config))
        words = [sys.executable, "-m", "pipeline", command, f"config={path}"]
        return supervise(words, here.workers, log, here.grace, early, restarts)


def supervise(
    command: list[str],
    workers: Sequence[Mapping[str, str]],
    log: str | None = None,
    grace: float = 120.0,
    early: str = EARLY,
    restarts: Restarts | None = None,
) -> Ended:
    """Run `command` once for each environment in `workers`, in order of local rank.

    Stop signals are passed on, and workers have `grace` seconds to save; one without a handler has
    nothing to save yet, and ends. When a worker fails the others cannot make a checkpoint without
    it: they get `CRASHED` seconds to publish one that is complete.

    log: URL of the node's log.
    early: end of the message about workers that were stopped before they could save.
    restarts: decides after a failure whether all start again; None: never.
    """
    stop: list[int] = []
    alive: list[Worker] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        output(log) as writing,
        handled(STOP_SIGNALS, lambda number, _: stop.append(number)),
    ):

        def start(held: bool = False) -> list[Worker]:
            settings = {HELD: "1"} if held else restarts.settings() if restarts else {}
            made = []
            for i, place in enumerate(workers):
                error = Path(scratch, str(len(alive)))
                given = {COMMAND: command_line(), **place, **settings, ERROR_FILE: str(error)}
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **given},
                    preexec_fn=partial(_prepare, os.getpid()),
                    stdin=subprocess.PIPE if held else None,
                    stdout=None if i == 0 else writing or sys.stderr,
                    stderr=writing,
                )
                made.append(Worker(process, place, error))
                alive.append(made[-1])
            return made

        def report(line: str) -> None:
            if writing is None:
                say(line)
            else:
                os.write(writing, f"{line}\n".encode())

        spare: list[Worker] = []
        try:
            group = start()
            while True:
                prepare = partial(start, True) if restarts and restarts.retries else list[Worker]
                spare, ended, message = _attend(group, stop, grace, early, restarts, prepare)
                lasting = stop or any(w.status == LASTING for w in group)
                if ended.status != 1 or ended.error is None or lasting or restarts is None:
                    break
                if (reason := restarts.again(ended.error)) is None:
                    break
                report(f"{reason}; starting again in place")
                if spare and all(w.status is None for w in spare):
                    group, settings = spare, restarts.settings()
                    for worker in group:
                        worker.release(settings)
                else:
                    _pass_on(spare, (signal.SIGKILL,))
                    group = start()
        finally:
            _pass_on(alive, (signal.SIGKILL,))
            for worker in alive:
                worker.process.wait()
        record_error(ended.error or "")
        if message is not None:
            say(message) if ended.status == os.EX_CONFIG else report(message)
    return ended


def _attend(
    group: Sequence[Worker],
    stop: Sequence[int],
    grace: float,
    early: str,
    restarts: Restarts | None,
    prepare: Callable[[], list[Worker]],
) -> tuple[list[Worker], Ended, str | None]:
    """Wait until a group has ended; returns the next one, the end, and the message about it."""
    due = time.monotonic() + PREPARE_AFTER
    spare: list[Worker] = []
    first: list[int] = []
    deadline, called = None, False
    while any(w.status is None for w in group):
        bad = [i for i, w in enumerate(group) if w.status not in (None, 0, os.EX_TEMPFAIL)]
        first = first or bad
        called = called or restarts is not None and restarts.called()
        if deadline is None and (stop or called or any(w.status for w in group)):
            crashed = min(grace, CRASHED_IN_PLACE if restarts else CRASHED)
            deadline = time.monotonic() + (crashed if (bad or called) and not stop else grace)
            _pass_on(group, sorted({*stop[:1], signal.SIGTERM}))
        if deadline is not None and time.monotonic() > deadline:
            _pass_on(group, (signal.SIGKILL,))
        if deadline is None and not spare and time.monotonic() > due:
            spare = prepare()
        time.sleep(0.05)
    statuses = [w.process.wait() for w in group]
    first = first or [i for i, s in enumerate(statuses) if s not in (0, os.EX_TEMPFAIL)]
    status = outcome(statuses, [statuses[i] for i in first], bool(stop))
    if called and not stop and status == os.EX_TEMPFAIL:
        status = 1  # nobody asked to stop: another node's workers have failed
    error = None
    if status not in (0, os.EX_TEMPFAIL):  # others' errors follow from those of the first
        lines = [group[i].message() for i in first]
        error = cause(enumerate(lines)) or lines[0]
    message = error
    killed = [i for i, s in enumerate(statuses) if s < 0]
    if status == os.EX_TEMPFAIL and killed:
        number = [*stop, *(-statuses[i] for i in [*first, *killed] if i in killed)][0]
        message = f"stopped ({signal.Signals(number).name}) {early}"
    return spare, Ended(status, error), message


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


def _pass_on(workers: Sequence[Worker], numbers: Sequence[int]) -> None:
    """Send the signals to the workers that still run."""
    for worker in workers:
        if worker.status is None:
            for number in numbers:
                worker.process.send_signal(number)
            worker.process.send_signal(signal.SIGCONT)  # a suspended one would not receive them


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


def workers_of(launcher: int) -> dict[int, int]:
    """Return the process id of each rank; of a rank that has a worker ahead of time, the older."""
    found: dict[int, int] = {}
    children = psutil.Process(launcher).children()
    for process in sorted(children, key=psutil.Process.create_time, reverse=True):
        with suppress(psutil.Error, KeyError):
            found[int(process.environ()["RANK"])] = process.pid
    return found


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants; shared pages count in each."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # it has just ended; the others count
                total += process.memory_info().rss
    return total / 1e6
