"""A request to stop sets a flag; the loop reads it at each step's end.

SIGTERM and SIGUSR1 come from schedulers, SIGINT from a terminal. A handler that did more would run
between two arbitrary instructions of one rank, while the others go on into a collective.

Before the block of `stop_requests` a signal simply ends the process: there is nothing to save yet,
and what it waits for, other ranks say, no flag would interrupt. Its launcher knows (`supervise`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """True once this process was asked to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name  # a launcher adds its SIGTERM


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for requests to stop for as long as the block runs."""
    request = StopRequest()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():  # too late: what there was to save is saved
            signal.signal(number, handler if number == signal.SIGINT else signal.SIG_IGN)


@contextmanager
def unstopped() -> Iterator[list[int]]:
    """A stop that comes meanwhile is obeyed afterwards: what was taken is written down first.

    The list that it gives holds the signals that came."""
    heard: list[int] = []
    caught = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in caught}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt if heard[0] == signal.SIGINT else SystemExit(128 + heard[0])
