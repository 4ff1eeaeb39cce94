"""One `submit` of a job at a time, which nothing stops between a scheduler's yes and its record."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobs.spec import SubmitError
from pipeline.common.lease import Taken, leased
from pipeline.common.locks import Held, hold, sign
from pipeline.runs.identity import SUBMITTING
from shards import store

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held(place: str) -> Iterator[None]:
    """Hold a job's folder or URL while it is submitted. `SubmitError` where another does.

    A folder in which nothing is left then is removed.
    """
    if not store.is_local(place):
        try:
            with leased(store.join(place, ".submit"), work="submitted"):
                yield
        except Taken as error:
            raise _taken(place, error.owner) from None
        return
    path = store.local(place).absolute() / SUBMITTING
    try:
        handle = hold(path)
    except Held as error:
        raise _taken(place, error.owner) from None
    except OSError as error:
        raise SubmitError(
            f"{place} cannot be written ({error.strerror}): name another folder"
        ) from None
    try:
        sign(handle)
        yield
    finally:
        path.unlink(missing_ok=True)
        handle.close()
        with suppress(OSError):
            path.parent.rmdir()


def _taken(place: str, owner: str) -> SubmitError:
    return SubmitError(
        f"{store.display(place)} is being submitted by {owner}: wait, then look at `status`"
    )


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
