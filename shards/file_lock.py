"""Lock a file of this machine while a block runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of the file at `path` during the block; the file is created, and not removed.

    Without `wait` yields False at once if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        if wait:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield wait or _locks(handle)


def _locks(handle: TextIO) -> bool:
    try:  # by POSIX: a data loader forked during the block would inherit a flock
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
