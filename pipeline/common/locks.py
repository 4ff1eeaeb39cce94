"""Locks that name their owner: a file on a disk of this machine, or objects in a bucket.

In a bucket `.lock/000007.json`, a numbered attempt, is created with If-None-Match: of two processes
that start together one wins. Its owner writes `.lock/heartbeat.json` every `BEAT` seconds. A second
process fails while the heartbeat changes, and takes over once it has not changed for `STALE`
seconds; clocks of different machines are not compared. An owner that was superseded exits at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline.common.console import say
from pipeline.common.errors import ConfigError
from shards import store

BEAT, STALE = 10.0, 60.0


# What to do about a lock of another process, by what it does with the place.
HINTS = {
    "trained": "wait, stop that process, or give another run=",
    "synced": "wait for it",
    "submitted": "wait, then run `status`",
    "used": "wait for it, or give another folder",
}


class Held(ConfigError):
    """Another process holds the run or folder at `place`; `owner` is its host and pid."""

    def __init__(self, place: str, owner: str, work: str) -> None:
        self.owner = owner
        super().__init__(f"{place} is being {work} by {owner}: {HINTS[work]}")


def hold(path: Path, place: str, work: str = "trained") -> TextIO:
    """Lock the file at `path`, creating its folder, until it is closed or the process ends.

    Raises Held, or ConfigError where the file cannot be written or locked. place: how messages name
    the folder.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(path, "a+")  # noqa: SIM115
        except OSError as error:
            problem = f"{place} cannot be written ({error.strerror})"
            raise ConfigError(f"{problem}: give another folder") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise Held(place, owner, work) from None
        except OSError as error:  # the disk, or how it is mounted, knows no locks
            handle.close()
            raise ConfigError(
                f"{place} is on a disk without file locks (flock: {error.strerror}): give a "
                "folder on another disk, or have it mounted with them (on Lustre: -o flock)"
            ) from None
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(handle.fileno())):
            return handle
        handle.close()  # the previous owner has just removed it


def is_locked(path: Path) -> bool:
    """Return whether another process holds the file at `path` by `hold`."""
    try:
        with open(path) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # other errors: never held, or moved
        return isinstance(error, BlockingIOError)
    return False


def sign(handle: TextIO) -> None:
    """Write this process's name into the file; a full disk raises OSError here."""
    handle.truncate(0)
    handle.write(f"{socket.gethostname()} pid {os.getpid()}")
    handle.flush()


@contextmanager
def leased(url: str, work: str = "trained", lock: str = ".lock") -> Iterator[None]:
    """Hold the run at `url` during the block.

    Raises Held where another process writes it. A process that only sends its events
    (work="synced") is waited for.
    """
    base = store.join(url, lock)
    mine: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "work": work}
    mine["id"] = secrets.token_hex(8)
    while "attempt" not in mine:
        number = _newest(base)
        if number:
            _wait(base, number, url, announce=work == "trained")
        attempt = json.dumps({**mine, "attempt": number + 1}).encode()
        try:
            store.write(_attempt(base, number + 1), attempt, exclusive=True)
            mine["attempt"] = number + 1
        except FileExistsError:
            first = _read(_attempt(base, number + 1))
            if first.get("work") != "synced":
                raise _held(url, first) from None
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(base, mine, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()


def is_leased(url: str) -> bool:
    """Return whether a live process holds the run at `url`; takes up to `STALE` seconds."""
    base = store.join(url, ".lock")
    try:
        if number := _newest(base):
            _wait(base, number, url, announce=True)
    except Held:
        return True
    return False


def _beat(base: str, mine: dict[str, Any], over: threading.Event) -> None:
    count, heartbeat = 0, store.join(base, "heartbeat.json")
    while not over.is_set():
        with suppress(OSError, ValueError):  # an outage; the next beat checks again
            if _newest(base) > mine["attempt"]:
                say(f"lost the run lock to {_owner(_read(_attempt(base, _newest(base))))}; exiting")
                os._exit(1)
            store.write(heartbeat, json.dumps({**mine, "beat": count}).encode())
            count += 1
        over.wait(BEAT)
    with suppress(OSError, ValueError):
        store.write(heartbeat, json.dumps({**mine, "released": True}).encode())


def _wait(base: str, number: int, url: str, announce: bool) -> None:
    """Return once attempt `number` is over: released, dead, or silent for `STALE` seconds."""
    heartbeat, owner = store.join(base, "heartbeat.json"), _read(_attempt(base, number))
    if owner.get("host") == socket.gethostname() and not _alive(int(owner.get("pid", 0))):
        return
    first, until = _read(heartbeat), time.monotonic() + STALE
    while time.monotonic() < until:
        now = _read(heartbeat)
        if now.get("attempt") == number and now.get("released"):
            return
        if now != first and owner.get("work") != "synced":
            raise _held(url, now)
        if now != first:
            first, until = now, time.monotonic() + STALE
        if announce:
            say(f"{store.display(url)}: is {_owner(owner)} alive? Waiting up to {STALE:.0f} s")
            announce = False
        time.sleep(min(1.0, BEAT / 2))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _newest(base: str) -> int:
    """Return the number of the last attempt, 0 before the first."""
    names = [name.removesuffix(".json") for name in store.names(base)]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _attempt(base: str, number: int) -> str:
    return store.join(base, f"{number:06d}.json")


def _read(url: str) -> dict[str, Any]:
    try:
        return dict(json.loads(store.read(url)))
    except FileNotFoundError:
        return {}


def _owner(attempt: dict[str, Any]) -> str:
    return f"{attempt.get('host', 'another machine')} pid {attempt.get('pid', '?')}"


def _held(url: str, attempt: dict[str, Any]) -> Held:
    return Held(store.display(url), _owner(attempt), attempt.get("work", "trained"))
