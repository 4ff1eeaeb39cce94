"""What outlasts a pod: its output and its last word, in the job's folder, whatever the verb.

A pod's log goes with the pod, and the Job with its TTL. `<folder>/logs/pod-N.log` is what process N
of the job said, over all its starts; `pod-N.state` how it is or how it ended, in one line.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from pipeline.launch import workers as supervise
from shards import store

PODS = "LACUNA_PODS"  # URL that the names begin with; the pod's number follows
STOPPED = 128 + signal.SIGTERM


def kept(body: Callable[[], int]) -> int:
    """Runs `body`; its exit status. In a pod's first process, what it says and how it ends stay."""
    prefix = os.environ.get(PODS)
    if prefix is None or "RANK" in os.environ:
        return body()
    place = prefix + os.environ.get("JOB_COMPLETION_INDEX", "0")
    # A pod's first process hears no signal that it does not handle, and would be waited for until
    # its grace period is over. Who has something to save has a handler of its own.
    before_stop = signal.signal(signal.SIGTERM, _stop)
    note(place, "RUNNING")
    with supervise.output(f"{place}.log") as writing:
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
            if signal.getsignal(signal.SIGTERM) is _stop:  # else the verb has its reasons
                signal.signal(signal.SIGTERM, before_stop)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(before, start=1):
                os.dup2(saved, number)
                os.close(saved)
    word = {0: "SUCCEEDED", supervise.SAVED: "INTERRUPTED stopped on request, everything saved",
            STOPPED: "INTERRUPTED stopped on request"}  # fmt: skip
    note(place, word.get(status, f"FAILED {supervise.last_word() or f'exit {status}'}"))
    return status


def _stop(number: int, frame: object) -> None:
    raise SystemExit(STOPPED)


def note(place: str, line: str) -> None:
    with suppress(OSError, ValueError):
        store.write(f"{place}.state", f"{line}\n".encode())
