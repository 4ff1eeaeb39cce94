"""A file in a folder of this machine that one living process holds, and that names it."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO


class Held(Exception):
    """Another process holds the file; `owner` is its host and pid."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(owner)


def hold(path: Path) -> TextIO:
    """The file at `path`, its folder made: this process's until it is closed, or the process ends.

    Raises Held, and OSError where it cannot be written.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise Held(owner) from None
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(handle.fileno())):
            return handle
        handle.close()  # its holder has just removed it


def sign(handle: TextIO) -> None:
    """Write this process's name into it. A disk that is full fails here, not where it is opened."""
    handle.truncate(0)
    handle.write(f"{socket.gethostname()} pid {os.getpid()}")
    handle.flush()
