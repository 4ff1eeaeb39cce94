"""How often a scheduler is asked by `logs -f`, on a clock that only moves when it is slept on."""

from types import SimpleNamespace

import pytest

from jobs import watching
from jobs.spec import SubmitError


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have gone by."""
    gone = [0.0]
    fake = SimpleNamespace(monotonic=lambda: gone[0], sleep=lambda s: gone.append(gone.pop() + s))
    monkeypatch.setattr(watching, "time", fake)
    return gone


def test_a_quiet_job_is_looked_at_often_and_its_scheduler_asked_seldom(clock):
    asked = []

    def ask():
        asked.append(clock[0])
        return clock[0] < 120

    looks = list(watching.watched(ask, lambda: None))
    assert not looks[-1] and all(looks[:-1])
    assert asked[:3] == [0, 0.5, 1.5] and len(asked) <= 17
    assert min(b - a for a, b in zip(asked[6:], asked[7:])) >= 10
    assert len(looks) > 200


def test_the_end_that_a_note_tells_is_known_at_once(clock):
    looks = watching.watched(lambda: clock[0] < 100, lambda: clock[0] >= 100)
    assert [*looks][-1] is False
    assert clock[0] == 100


def test_failures_that_pass_are_borne(clock):
    asked = []

    def ask():
        asked.append(clock[0])
        if len(asked) in (2, 3, 4):
            raise SubmitError("scontrol: timed out")
        return len(asked) < 6

    assert list(watching.watched(ask, lambda: None))[-1] is False
    assert len(asked) == 6


@pytest.mark.parametrize(("answers", "questions"), [(0, 1), (3, 15)])
def test_a_scheduler_that_never_answered_or_does_no_more_is_told(clock, answers, questions):
    asked = []

    def ask():
        asked.append(clock[0])
        if len(asked) > answers:
            raise SubmitError("scontrol: timed out")
        return True

    with pytest.raises(SubmitError, match="timed out"):
        list(watching.watched(ask, lambda: None))
    assert len(asked) == questions
