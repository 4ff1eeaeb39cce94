"""How often a scheduler is asked by somebody who waits: seldom, and soon where there is news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from jobs.spec import SubmitError

LOOK = 0.5  # seconds between looks at what costs the scheduler nothing
ASK = 10.0  # seconds between questions to the scheduler, where nothing happens
BORNE = 12  # failed questions on end: about two minutes


def watched(ask: Callable[[], bool], news: Callable[[], object]) -> Iterator[bool]:
    """Whether the job lives, every half second, until it does not: the last is False.

    ask: asks the scheduler. news: what changes at turns of the job, at no cost; the scheduler is
    asked at once after each change, then after ever longer pauses up to `ASK` seconds. Raises
    the `SubmitError` of the first question, or that of `BORNE` failures on end.
    """
    live, known, failures = True, False, 0
    heard, pause, due = news(), LOOK, 0.0
    while live:
        if (told := news()) != heard:
            heard, pause, due = told, LOOK, 0.0
        if time.monotonic() >= due:
            try:
                live, known, failures = ask(), True, 0
            except SubmitError:
                failures += 1
                if not known or failures == BORNE:
                    raise
            due = time.monotonic() + pause
            pause = min(2 * pause, ASK)
        yield live
        if live:
            time.sleep(LOOK)
