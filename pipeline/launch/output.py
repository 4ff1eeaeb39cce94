"""What outlasts a pod: its output and its last word, in the job's folder, whatever the verb.

A pod's log goes with the pod, and the Job with its TTL. `<folder>/logs/pod-N.log` is what process N
of the job said, over all its starts; `pod-N.state` how it is or how it ended, in one line.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.common.signals import handled
from shards import store

ERROR_FILE = "LACUNA_ERROR_FILE"  # where a worker leaves the line that its launcher reports
PUBLISH = "LACUNA_PUBLISH"  # a worker makes this file when its node's log is to be published
NODE_ERRORS = "LACUNA_ERRORS"  # where each node's launcher leaves its line: this, `-` and its rank
TERMINATION = Path("/dev/termination-log")  # what Kubernetes shows of a container that failed
PUBLISH_EVERY = 60.0  # seconds between copies of a log into a bucket that nobody asks for
_words: list[str] = []


PODS = "LACUNA_PODS"  # URL that the names begin with; the pod's number follows
STOPPED = 128 + signal.SIGTERM


def with_job_log(body: Callable[[], int]) -> int:
    """Runs `body`; its exit status. In a pod's first process, what it says and how it ends stay."""
    prefix = os.environ.get(PODS)
    if prefix is None or "RANK" in os.environ:
        return body()
    place = prefix + os.environ.get("JOB_COMPLETION_INDEX", "0")
    # The kernel drops signals that a pod's first process does not handle, so that without a handler
    # it would run until its grace period ends. A command that saves sets its own handler.
    with output(f"{place}.log") as writing, handled([signal.SIGTERM], _stop):
        note(place, "RUNNING")
        before = [os.dup(1), os.dup(2)]
        if writing is not None:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
        try:
            status = body()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(before, start=1):
                os.dup2(saved, number)
                os.close(saved)
    word = {0: "SUCCEEDED", os.EX_TEMPFAIL: "INTERRUPTED stopped on request, everything saved",
            STOPPED: "INTERRUPTED stopped on request"}  # fmt: skip
    note(place, word.get(status, f"FAILED {last_error() or f'exit {status}'}"))
    return status


def _stop(number: int, frame: object) -> None:
    raise SystemExit(STOPPED)


def note(place: str, line: str) -> None:
    with suppress(OSError, ValueError):
        store.write(f"{place}.state", f"{line}\n".encode())


def last_error() -> str | None:
    """The error that this process left last."""
    return _words[-1] if _words else None


def record_error(line: str) -> bool:
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
            if with_job_log := os.environ.get(NODE_ERRORS):
                path = Path(f"{with_job_log}-{os.environ.get('PET_NODE_RANK', '0')}")
                whole = path.with_name(f".{path.name}")  # a full disk leaves an empty one
                whole.write_text(f"{time.time():.3f} {line}\n")
                whole.replace(path)
    return mine is not None


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
