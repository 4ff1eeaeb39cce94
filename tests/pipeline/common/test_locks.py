"""The lock of a run in a bucket, on a real S3 server."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.common import locks
from pipeline.common.errors import ConfigError
from pipeline.common.locks import leased
from shards import store

pytestmark = pytest.mark.s3
ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pipeline.common import locks; locks.BEAT, locks.STALE = .1, 1.\n"
    "with locks.leased(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "STALE", 1.0)


@pytest.fixture
def run(bucket):
    return store.join(bucket, "run")


@pytest.fixture
def holder(run):
    """Another process that holds the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_live_writer_is_refused_naming_the_first(run, holder):
    with pytest.raises(ConfigError, match=rf"is being trained by \S+ pid {holder.pid}:"):
        leased(run).__enter__()


def test_whether_a_run_is_held_is_told_without_taking_it(run, holder, monkeypatch):
    assert not locks.is_leased(f"{run}-never-held")
    assert locks.is_leased(run) and locks.is_leased(run)
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "another machine")
    holder.kill()
    holder.wait()
    assert not locks.is_leased(run)


def test_a_silent_writer_is_superseded_once_its_heartbeat_stands_still(run, holder, monkeypatch):
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "another machine")
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with leased(run):
        assert time.monotonic() - began >= locks.STALE


def test_a_dead_writer_of_this_machine_is_superseded_at_once(run, holder, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 60.0)
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with leased(run):
        assert time.monotonic() - began < locks.STALE, "it was waited for"


def test_a_writer_that_left_in_order_is_followed_at_once(run, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 60.0)
    began = time.monotonic()
    for _ in range(3):
        with leased(run):
            assert time.monotonic() - began < locks.STALE, "it was waited for"


def test_a_holder_that_only_sends_events_is_waited_for(run):
    code = HOLD.replace("leased(sys.argv[1])", "leased(sys.argv[1], 'synced')")
    code = code.replace("time.sleep(60)", "time.sleep(2)")  # twenty heartbeats
    sending = subprocess.Popen([sys.executable, "-c", code, run], cwd=ROOT, stdout=-1)
    assert sending.stdout.readline() == b"held\n"
    with leased(run):
        assert sending.wait(20) == 0, "it was superseded"


def test_of_starters_that_race_exactly_one_wins(run):
    def start(_):
        try:
            with leased(run):
                time.sleep(2)
                return True
        except ConfigError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(start, range(4))) == [False, False, False, True]


def test_a_writer_that_was_asleep_and_superseded_ends_itself(run, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    with leased(run):
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(20) == 1
        assert b"superseded by" in holder.stderr.read()
