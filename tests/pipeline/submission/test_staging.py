"""The lock of a job while it is submitted, and the stops that wait for its record."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.spec import SubmitError
from pipeline.common import locks, signals
from pipeline.common.errors import ConfigError
from pipeline.submission import staging
from shards import store

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pipeline.common import locks; locks.BEAT = 0.1\n"
    "from pipeline.submission.staging import held_for_submission\n"
    "with held_for_submission(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def held_by(place):
    process = subprocess.Popen([sys.executable, "-c", HOLD, place], cwd=ROOT,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    return process


def refused(place, pid):
    with (
        pytest.raises(ConfigError, match=rf"is being submitted by \S+ pid {pid}: wait") as message,
        staging.held_for_submission(place),
    ):
        pass
    return str(message.value)


def killed(process):
    process.kill()
    process.wait()


def test_a_second_submission_is_refused_until_the_first_is_gone(tmp_path):
    place = str(tmp_path / "job")
    first = held_by(place)
    assert refused(place, first.pid).startswith(f"{place} is")
    killed(first)
    with staging.held_for_submission(place):
        refused(place, os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_folder_outlasts_the_lock(tmp_path):
    (tmp_path / "theirs").touch()
    with staging.held_for_submission(str(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.s3
def test_in_a_bucket_too(bucket, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    place = store.join(bucket, "runs/job")
    first = held_by(place)
    assert refused(place, first.pid).startswith(f"{place} is")
    killed(first)
    with staging.held_for_submission(place):
        refused(place, os.getpid())
    with staging.held_for_submission(place):
        pass


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stop_is_obeyed_once_all_is_written(number, end):
    done = []
    with pytest.raises(end), signals.unstopped() as heard:
        os.kill(os.getpid(), number)
        done.append(list(heard))
    assert done == [[number]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_refusal_is_told_whatever_stop_came_with_it():
    with pytest.raises(SubmitError, match="shut"), signals.unstopped():
        os.kill(os.getpid(), signal.SIGINT)
        raise SubmitError("shut")
