"""Poll a scheduler while following a job: rarely, and at once after its state file changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from jobs.spec import SubmitError

POLL = 0.5  # seconds between reads of the state files, which cost the scheduler nothing
MAX_PAUSE = 10.0  # seconds between queries of the scheduler while nothing changes
MAX_FAILURES = 12  # consecutive failed queries: about two minutes


def watched(ask: Callable[[], bool], news: Callable[[], object]) -> Iterator[bool]:
    """Yield every half second whether the job is live; the last value is False.

    ask: queries the scheduler. news: a cheap value that changes with the job's state; each change
    leads to a query at once, then pauses grow up to `MAX_PAUSE` seconds. Raises the `SubmitError`
    of the first query, or of `MAX_FAILURES` failures in a row.
    """
    live, known, failures = True, False, 0
    last, pause, due = news(), POLL, 0.0
    while live:
        if (current := news()) != last:
            last, pause, due = current, POLL, 0.0
        if time.monotonic() >= due:
            try:
                live, known, failures = ask(), True, 0
            except SubmitError:
                failures += 1
                if not known or failures == MAX_FAILURES:
                    raise
            due = time.monotonic() + pause
            pause = min(2 * pause, MAX_PAUSE)
        yield live
        if live:
            time.sleep(POLL)
