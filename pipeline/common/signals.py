"""Signals that ask this process to stop.

SIGTERM and SIGUSR1 come from schedulers, SIGINT and SIGHUP from terminals. In training a signal
only sets a flag, which the loop reads after each step: a handler that did more would run between
two arbitrary instructions of one rank while the other ranks enter a collective. Before the block of
`stop_requests` a signal ends the process: there is nothing to save, and a flag would not interrupt
the wait for other ranks. The launcher (`supervise`) accounts for that.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]

OUTSIDE_STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # nobody waits at a terminal
STOP_SIGNALS = (*OUTSIDE_STOPS, signal.SIGINT)
SUBMIT_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def obeyed(numbers: Iterable[int]) -> list[int]:
    """Return the signals `numbers`, without SIGHUP where it is ignored, as under `nohup`."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def ignore(numbers: Iterable[int]) -> None:
    """Ignore the signals `numbers` from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle the signals `numbers` by `handler` during the block; then restore what was there.

    A handler that was replaced for good during the block is left alone.
    """
    before = {number: signal.signal(number, handler) for number in obeyed(numbers)}
    try:
        yield
    finally:
        for number, previous in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)


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
    """Collect requests to stop while the block runs; afterwards all but SIGINT are ignored."""
    request = StopRequest()
    with handled(STOP_SIGNALS, request):
        try:
            yield request
        finally:  # everything was saved: a late signal must not turn success into failure
            ignore(OUTSIDE_STOPS)


@contextmanager
def unstopped() -> Iterator[list[int]]:
    """Delay stop signals until the block is done, so that what it started is also recorded.

    Yields the list of the signals that arrived; the first is obeyed after the block.
    """
    arrived: list[int] = []
    caught = [number for number in SUBMIT_STOPS if signal.getsignal(number) != signal.SIG_IGN]
    with handled(caught, lambda number, _: arrived.append(number)):
        yield arrived
    if arrived:
        raise KeyboardInterrupt if arrived[0] == signal.SIGINT else SystemExit(128 + arrived[0])
