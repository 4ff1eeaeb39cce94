"""Locks that name their owner: a file on a disk of this machine, or objects in a bucket.

In a bucket `.lock/000007.json`, a numbered attempt, is created with If-None-Match: of two starters
one wins. Its owner writes `.lock/heartbeat.json` every `BEAT` seconds. A starter refuses where the
heartbeat moves, and supersedes one that has stood still for `STALE` seconds; no clocks are
compared. An owner that finds itself superseded ends at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline.common.errors import ConfigError
from shards import store

BEAT, STALE = 10.0, 60.0


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


class Taken(ConfigError):
    """Another process holds the run; `owner` is its host and pid."""

    def __init__(self, url: str, told: dict[str, Any]) -> None:
        self.owner = _owner(told)
        super().__init__(
            f"{store.display(url)} is being {told.get('work', 'trained')} by {self.owner}: wait, "
            "stop that one, or name another run="
        )


@contextmanager
def leased(url: str, work: str = "trained") -> Iterator[None]:
    """Hold the run at `url` while it is `work`. Raises Taken where another process writes it; one
    that only sends its events (`work` is "synced") is waited for."""
    base = store.join(url, ".lock")
    mine: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "work": work}
    mine["id"] = secrets.token_hex(8)
    while "attempt" not in mine:
        number = _newest(base)
        if number:
            _wait(base, number, url, aloud=work == "trained")
        told = json.dumps({**mine, "attempt": number + 1}).encode()
        try:
            store.write(_attempt(base, number + 1), told, exclusive=True)
            mine["attempt"] = number + 1
        except FileExistsError:
            first = _read(_attempt(base, number + 1))
            if first.get("work") != "synced":
                raise Taken(url, first) from None
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(base, mine, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()


def is_leased(url: str) -> bool:
    """Whether somebody alive holds the run at `url`; within `STALE` seconds."""
    base = store.join(url, ".lock")
    try:
        if number := _newest(base):
            _wait(base, number, url, aloud=True)
    except Taken:
        return True
    return False


def _beat(base: str, mine: dict[str, Any], over: threading.Event) -> None:
    count, heartbeat = 0, store.join(base, "heartbeat.json")
    while not over.is_set():
        with suppress(OSError, ValueError):  # an outage; another may take over, which then shows
            if _newest(base) > mine["attempt"]:
                told = _read(_attempt(base, _newest(base)))
                print(f"superseded by {_owner(told)}: this process ends", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            store.write(heartbeat, json.dumps({**mine, "beat": count}).encode())
            count += 1
        over.wait(BEAT)
    with suppress(OSError, ValueError):
        store.write(heartbeat, json.dumps({**mine, "released": True}).encode())


def _wait(base: str, number: int, url: str, aloud: bool) -> None:
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
            raise Taken(url, now)
        if now != first:
            first, until = now, time.monotonic() + STALE
        if aloud:
            where = store.display(url)
            print(f"{where}: is {_owner(owner)} alive? up to {STALE:.0f} s", file=sys.stderr)
            aloud = False
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
    """The number of the last attempt, 0 before the first."""
    found = [n.removesuffix(".json") for n in store.names(base)]
    return max((int(n) for n in found if n.isdigit()), default=0)


def _attempt(base: str, number: int) -> str:
    return store.join(base, f"{number:06d}.json")


def _read(url: str) -> dict[str, Any]:
    try:
        return json.loads(store.read(url))
    except FileNotFoundError:
        return {}


def _owner(told: dict[str, Any]) -> str:
    return f"{told.get('host', 'another machine')} pid {told.get('pid', '?')}"
