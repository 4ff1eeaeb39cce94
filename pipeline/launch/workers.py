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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jobs.cause import cause
from shards import store

SAVED, CONFIGURATION = 75, 78
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = tuple(-number for number in STOP_SIGNALS)  # statuses: what it had to save has a handler
PR_SET_PDEATHSIG = 1
ERROR_FILE = "LACUNA_ERROR_FILE"  # where a worker leaves the line that its launcher reports
PUBLISH = "LACUNA_PUBLISH"  # a worker makes this file when its node's log is to be published
NODE_ERRORS = "LACUNA_ERRORS"  # where each node's launcher leaves its line: this, `-` and its rank
TERMINATION = Path("/dev/termination-log")  # what Kubernetes shows of a container that failed
CRASHED = 30.0  # seconds: over NCCL those left behind would wait in an exchange for ever
PUBLISH_EVERY = 60.0  # seconds between copies of a log into a bucket that nobody asks for


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
    before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in STOP_SIGNALS}
    started: list[subprocess.Popen[bytes]] = []
    first: list[int] = []
    deadline = None
    with tempfile.TemporaryDirectory() as scratch, output(log) as writing:
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
                bad = [i for i, w in enumerate(started) if w.poll() not in (None, 0, SAVED)]
                first = first or bad
                if deadline is None and (stop or any(w.poll() for w in started)):
                    given = min(grace, CRASHED) if bad and not stop else grace
                    deadline = _pass_on(started, sorted({*stop[:1], signal.SIGTERM}), given)
                if deadline is not None and time.monotonic() > deadline:
                    _pass_on(started, (signal.SIGKILL,), 0)
                time.sleep(0.05)
        finally:
            _pass_on(started, (signal.SIGKILL,), 0)
            for number, handler in before.items():
                signal.signal(number, handler)
        statuses = [w.wait() for w in started]
        status = outcome(statuses, [statuses[i] for i in first], bool(stop))
        error = None if status in (0, SAVED) else _cause(first, statuses, workers, errors)
        leave_word(error or "")
        told = error
        if status == SAVED and (ended := [i for i in range(len(started)) if statuses[i] < 0]):
            got = [*stop, *(-statuses[i] for i in [*first, *ended] if i in ended)][0]
            told = f"stopped ({signal.Signals(got).name}) {early}"
        if told is not None and status != CONFIGURATION and writing is not None:
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
    if CONFIGURATION in statuses:
        return CONFIGURATION
    led = STOPPED if asked else first or [s for s in statuses if s not in (0, SAVED)]
    if set(statuses) & set(STOPPED) and set(led) <= set(STOPPED):
        return SAVED
    if all(status == 0 for status in statuses):
        return 0
    if all(status in (0, SAVED) for status in statuses):
        return SAVED
    return 1


_words: list[str] = []


def last_word() -> str | None:
    """The error that this process left last."""
    return _words[-1] if _words else None


def leave_word(line: str) -> bool:
    """Leave the error of this process where its launcher, Kubernetes or `status` looks for it.

    True in a worker: its launcher then says it, once for all of them.
    """
    mine = os.environ.get(ERROR_FILE)
    _words.extend([line] if line else [])
    with suppress(OSError):
        if mine is not None:
            Path(mine).write_text(line + "\n")
        elif line and "PET_NNODES" in os.environ:
            if TERMINATION.exists():
                TERMINATION.write_text(line + "\n")
            if kept := os.environ.get(NODE_ERRORS):
                path = Path(f"{kept}-{os.environ.get('PET_NODE_RANK', '0')}")
                whole = path.with_name(f".{path.name}")  # a full disk leaves an empty one
                whole.write_text(f"{time.time():.3f} {line}\n")
                whole.replace(path)
    return mine is not None


def _cause(
    first: list[int], statuses: list[int], workers: Sequence[Mapping[str, str]], errors: list[Path]
) -> str:
    """The line of a worker that failed first; what the others said follows from its death."""
    bad = first or [i for i, status in enumerate(statuses) if status not in (0, SAVED)]
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


def die_with_parent() -> None:
    """Run in a child before its program: the kernel then kills it when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# --- what the workers say -------------------------------------------------------------------------


@contextmanager
def output(log: str | None) -> Iterator[int | None]:
    """The file descriptor that workers write to; None where that is our own stderr."""
    if log is None or sys.stderr.isatty():
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = store.local(log) if store.is_local(log) else Path(scratch, "log")
        reading, writing = os.pipe()
        ours = os.dup(2)  # whatever our own stderr becomes
        copying = threading.Thread(target=_copy, args=(reading, path, ours), daemon=True)
        copying.start()
        over, asked = threading.Event(), Path(scratch, "asked")
        publishing = threading.Thread(target=_publish, args=(path, log, over, asked), daemon=True)
        if not store.is_local(log):
            os.environ[PUBLISH] = str(asked)
            publishing.start()
        try:
            yield writing
        finally:
            os.close(writing)
            copying.join(5)  # a process that a worker left behind may hold the pipe
            if not copying.is_alive():
                os.close(ours)
            over.set()
            if publishing.is_alive():
                publishing.join(30)
            os.environ.pop(PUBLISH, None)


def _copy(reading: int, path: Path, ours: int) -> None:
    """Until every writer has closed the pipe. A full disk or a closed stderr blocks nobody."""
    while chunk := os.read(reading, 1 << 16):
        with suppress(OSError):
            rest = chunk
            while rest:
                rest = rest[os.write(ours, rest) :]
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(chunk)


def publish_log() -> None:
    """Asks the launcher to publish the log of this node within a second: at a checkpoint."""
    with suppress(OSError):
        if asked := os.environ.get(PUBLISH):
            Path(asked).touch()


def _publish(path: Path, url: str, over: threading.Event, asked: Path) -> None:
    """Copy the log to its URL now and then, when asked and at the end, behind what is there."""
    earlier: bytes | None = None
    sent, due, last = 0, time.monotonic() + PUBLISH_EVERY, False
    while not last:
        last = over.wait(1.0)
        if not (last or asked.exists() or time.monotonic() > due):
            continue
        asked.unlink(missing_ok=True)  # first: who asks from here on has said more
        due = time.monotonic() + PUBLISH_EVERY
        data = path.read_bytes() if path.exists() else b""
        with suppress(OSError, ValueError):  # what a bucket does not take now it takes next time
            if earlier is None:
                earlier = store.read(url) if store.exists(url) else b""
            if len(data) > sent:
                store.write(url, earlier + data)
                sent = len(data)
