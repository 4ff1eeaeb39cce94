"""Copy a job's output and its final error into the job's folder, so that they outlast the pod.

A pod's log is deleted with the pod, and the Job after its TTL. `<folder>/logs/pod-N.log` is the
output of process N of the job over all its starts; `pod-N.state` is its state in one line.
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
from shards import files, store

ERROR_FILE = "LACUNA_ERROR_FILE"  # a worker writes its error here, and its launcher reports it
PUBLISH = "LACUNA_PUBLISH"  # a worker creates this file to have its node's log published
NODE_ERRORS = "LACUNA_ERRORS"  # each node's launcher writes its error to this, `-` and its rank
TERMINATION = Path("/dev/termination-log")  # Kubernetes shows it for a container that failed
PUBLISH_EVERY = 60.0  # seconds between copies of a log into a bucket, unless one is asked for
PODS = "LACUNA_PODS"  # prefix of the URLs of log and state; the pod's number follows
STOPPED = 128 + signal.SIGTERM
_errors: list[str] = []  # of this process, the last one last


def with_job_log(body: Callable[[], int]) -> int:
    """Run `body` and return its exit status; in a pod's first process keep its output and state."""
    prefix = os.environ.get(PODS)
    if prefix is None or "RANK" in os.environ:
        return body()
    place = prefix + os.environ.get("JOB_COMPLETION_INDEX", "0")
    # The kernel drops signals that a pod's first process does not handle, so that without a handler
    # it would run until its grace period ends. A command that saves sets its own handler.
    with output(f"{place}.log") as writing, handled([signal.SIGTERM], _stop):
        before = [os.dup(1), os.dup(2)]
        if writing is not None:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
        try:
            note(place, "RUNNING")  # in here: a stop may arrive while it is written
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
    states = {0: "SUCCEEDED", os.EX_TEMPFAIL: "INTERRUPTED stopped on request, everything saved",
              STOPPED: "INTERRUPTED stopped on request"}  # fmt: skip
    note(place, states.get(status, f"FAILED {_errors[-1] if _errors else f'exit {status}'}"))
    return status


def _stop(number: int, frame: object) -> None:
    raise SystemExit(STOPPED)


def note(place: str, line: str) -> None:
    """Write the state of a pod; storage that does not answer is ignored."""
    with suppress(OSError, ValueError):
        store.write(f"{place}.state", f"{line}\n".encode())


def record_error(line: str) -> bool:
    """Write the error of this process where its launcher, Kubernetes or `status` looks for it.

    Returns True in a worker: its launcher prints the error, once for all workers.
    """
    file = os.environ.get(ERROR_FILE)
    _errors.extend([line] if line else [])
    with suppress(OSError):
        if file is not None:
            Path(file).write_text(line + "\n")
        elif line and "PET_NNODES" in os.environ:
            if TERMINATION.exists():
                TERMINATION.write_text(line + "\n")
            if prefix := os.environ.get(NODE_ERRORS):
                path = Path(f"{prefix}-{os.environ.get('PET_NODE_RANK', '0')}")
                files.replace(path, f"{time.time():.3f} {line}\n".encode())
    return file is not None


@contextmanager
def output(log: str | None) -> Iterator[int | None]:
    """Yield the file descriptor for the workers' output; None where it is our own stderr."""
    if log is None or sys.stderr.isatty():
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = store.local(log) if store.is_local(log) else Path(scratch, "log")
        reading, writing = os.pipe()
        ours = os.dup(2)  # our stderr may be redirected meanwhile
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
            copying.join(5)  # a process that outlived its worker may hold the pipe
            if not copying.is_alive():
                os.close(ours)
            over.set()
            if publishing.is_alive():
                publishing.join(30)
            os.environ.pop(PUBLISH, None)


def _copy(reading: int, path: Path, ours: int) -> None:
    """Copy until all writers have closed the pipe; a full disk or closed stderr stops nothing."""
    while chunk := os.read(reading, 1 << 16):
        with suppress(OSError):
            rest = chunk
            while rest:
                rest = rest[os.write(ours, rest) :]
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append_to(path, chunk)


def publish_log() -> None:
    """Ask the launcher to publish the log of this node within a second, as after a checkpoint."""
    with suppress(OSError):
        if asked := os.environ.get(PUBLISH):
            Path(asked).touch()


def _publish(path: Path, url: str, over: threading.Event, asked: Path) -> None:
    """Append the log to its URL every `PUBLISH_EVERY` seconds, when asked, and at the end."""
    earlier: bytes | None = None
    sent, due, last = 0, time.monotonic() + PUBLISH_EVERY, False
    while not last:
        last = over.wait(1.0)
        if not (last or asked.exists() or time.monotonic() > due):
            continue
        asked.unlink(missing_ok=True)  # before reading: a later request has more to publish
        due = time.monotonic() + PUBLISH_EVERY
        data = path.read_bytes() if path.exists() else b""
        with suppress(OSError, ValueError):  # the next round sends it again
            if earlier is None:
                earlier = store.read(url) if store.exists(url) else b""
            if len(data) > sent:
                store.write(url, earlier + data)
                sent = len(data)
