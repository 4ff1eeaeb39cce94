"""Who is named when a group of processes stands still, and who when it is slow."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pipeline.launch.topology import place
from pipeline.training import watchdog
from pipeline.training.watchdog import FIRST_TIME_FACTOR, Watchdog, culprits, straggler

ROOT = Path(__file__).resolve().parents[3]


def record(marks, step, doing, beat, host="node"):
    return {"place": [marks, step, doing], "beat": beat, "host": host}


def test_a_rank_without_a_new_heartbeat_is_silent():
    before = [record(8, 3, "computing", 1), record(8, 3, "computing", 5, "far")]
    after = [record(8, 3, "computing", 2), record(8, 3, "computing", 5, "far")]
    assert culprits(before, after) == "rank 1 on far (last step 3, computing) is silent"


def test_without_a_silent_rank_the_one_with_fewest_marks_is_behind():
    before = [record(8, 3, "computing", 1), record(7, 3, "waiting for data", 1, "far")]
    after = [record(8, 3, "computing", 2), record(7, 3, "waiting for data", 2, "far")]
    message = culprits(before, after)
    assert message.startswith("rank 1 on far (last step 3, waiting for data) is behind")
    assert message.endswith("the furthest is at step 3, computing")


def test_with_all_ranks_at_one_mark_none_is_blamed():
    looks = [[record(8, 3, "computing", beat), record(8, 3, "computing", beat)] for beat in (1, 2)]
    assert culprits(*looks) == "all ranks are at step 3, computing"


def test_a_rank_without_any_heartbeat_is_named():
    message = culprits([record(1, 0, "starting", 1), None], [record(1, 0, "starting", 2), None])
    assert message == "rank 1 on an unknown host (no heartbeat yet) is silent"


def pace(wait, cpu, host="node"):
    return {"wait": wait, "cpu": cpu, "host": host}


def test_a_straggler_is_named_with_its_data_wait():
    ratio, line = straggler([pace(1, 99), pace(0, 100), pace(80, 120, "slow"), pace(2, 98)])
    assert ratio == 2
    assert line == (
        "straggler: rank 2 on slow spends 200 ms per step (80 waiting for data), "
        "the median rank 100 ms"
    )
    assert straggler([pace(1, 99), pace(0, 100)])[1] is None
    assert straggler([pace(0, 1), pace(0, 2), pace(0, 9)])[1] is None  # a few ms are nobody's fault


@pytest.fixture
def clock(monkeypatch):
    """The watch's clock, in seconds, moved by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def seconds_until_stalled(watch, clock):
    began = clock.seconds
    while not watch.stalled():
        clock.seconds += 1
    return clock.seconds - began


def test_the_first_time_of_an_activity_gets_ten_times_the_limit(clock):
    watch = Watchdog(0, 1, limit=20)
    for step, longest in ((1, FIRST_TIME_FACTOR * 20), (2, 20)):
        for doing in ("waiting for data", "computing"):
            watch.mark(step, doing)
            assert seconds_until_stalled(watch, clock) == longest + 1


def test_a_validation_longer_than_the_limit_continues_batch_by_batch(clock, monkeypatch):
    from pipeline.config.schema import TrainConfig
    from pipeline.training.loop import inpainter
    from tests.support.strategies import engine_of, networks_of

    watch = Watchdog(0, 1, limit=20)
    watch.mark(1, "validating")
    watch.mark(2, "validating")
    config = TrainConfig(batch=1, threads="1", precision="fp32")
    with engine_of(config, monkeypatch) as engine:
        generator = networks_of({"method": "msanet"}, config, engine).evaluated()
        inpaint = inpainter(generator, engine, watch)
        for _ in range(4):
            clock.seconds += 15
            assert not watch.stalled()
            inpaint(torch.zeros(1, 3, 40, 40), torch.zeros(1, 1, 40, 40))
    assert seconds_until_stalled(watch, clock) == 21


def test_a_process_that_was_suspended_restarts_its_own_timer(clock):
    watch = Watchdog(0, 1, limit=20)
    for step in (1, 2):
        watch.mark(step, "computing")
    clock.seconds += 1000  # nobody looked meanwhile
    assert not watch.stalled()
    assert seconds_until_stalled(watch, clock) == 21


@pytest.fixture
def pair(monkeypatch):
    """Two ranks' watchdogs in this process, their reports, and the store's owner."""
    served = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(served[0].port))
    reports = []
    ranks = [Watchdog(rank, 2, 0.5, reports.append) for rank in (0, 1)]
    for rank in ranks:
        for step in (1, 2):
            rank.mark(step, "computing")
    yield ranks, reports, served
    for rank in ranks:
        rank._closed.set()
    for thread in threading.enumerate():  # one that still tries to connect would abort pytest's end
        if thread.name.startswith("watch"):
            thread.join(30)


def test_ranks_wait_for_rank_0_longer_than_for_a_step_and_none_is_blamed(pair):
    (first, second), reports, _ = pair
    order = []
    waiting = threading.Thread(
        target=lambda: (second.after(2, "writing"), order.append("the other went on"))
    )
    waiting.start()
    first.after(2, "writing", lambda: (time.sleep(3), order.append("written")))
    waiting.join(30)
    assert order == ["written", "the other went on"] and not reports
    second.mark(3, "computing")
    second.mark(4, "computing")
    deadline = time.monotonic() + 30
    while not reports and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "rank 0 on" in reports[0] and "is behind" in reports[0]
    # Both ranks have this thread; the innermost call, `sleep`, is none of Python's.
    assert re.search(r"; it was last in test_watchdog\.py:\d+ test_ranks_wait_for", reports[0])


def test_ranks_that_wait_for_rank_0_fail_when_it_has_failed(pair):
    (first, second), reports, served = pair
    with pytest.raises(OSError, match="disk"), first:
        raise OSError("the disk is full")
    served.clear()  # as its process ends
    with pytest.raises(ConnectionError, match="rank 0"), second:
        pass


TRAIN = """
import os, sys, time
from datetime import timedelta
from pipeline.config.compose import compose
from pipeline.training import checkpointing, engine, loop

engine.AFTER_WATCHDOG = timedelta(seconds=1)
write = checkpointing.Saver._write
def slow(self, images_seen, files, state):
    time.sleep(6 if images_seen == 16 else 0)
    if sys.argv[1] == "fails":
        raise OSError("the bucket is gone")
    write(self, images_seen, files, state)
checkpointing.Saver._write = slow
loop.train(compose("train", sys.argv[2:]).config)
"""


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("upload", ["succeeds", "fails"])
def test_an_upload_longer_than_any_collective_decides_how_every_rank_ends(
    small_set, tmp_path, upload
):
    """A collective gives up after three seconds, the last upload takes six."""
    from tests.conftest import TINY

    words = [*TINY, f"data.url={small_set}", f"run={tmp_path}/run", "max_images=16"]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, upload, *words, "parallel.hang_timeout=2"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **worker, "OMP_NUM_THREADS": "1"},
        )
        for worker in place({}, 2).workers
    ]
    try:
        message = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if upload == "succeeds":
        assert [rank.returncode for rank in ranks] == [0, 0], message
    else:
        assert all(rank.returncode for rank in ranks), message
        assert "the bucket is gone" in message[0] and "rank 0" in message[1], message


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("stopped", ["0", "1"])
def test_a_stopped_rank_is_named_with_its_host_and_last_step(small_set, tmp_path, stopped):
    """Rank 0 too, whose store the others ask."""
    import psutil

    from tests.conftest import TINY

    words = [*TINY, f"data.url={small_set}", f"run={tmp_path}/run", "processes=2"]
    words += ["max_images=100000", "parallel.hang_timeout=6", "cluster.retries=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        log = tmp_path / "run" / "steps.jsonl"
        end = time.monotonic() + 120
        while not log.exists() or log.read_text().count("\n") < 20:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children()
        victim = next(w for w in workers if w.environ()["RANK"] == stopped)
        other = next(w for w in workers if w is not victim)
        victim.send_signal(signal.SIGSTOP)
        steps = log.read_text().count("\n")
        other.wait(60)  # it leaves, though its collective does not return
        victim.kill()  # continued, it might tell in its turn that the other is silent
        assert process.wait(150) == 1
        message = process.stderr.read()
    finally:
        process.kill()
    found = re.search(
        rf"for 6 s \(parallel.hang_timeout\): rank {stopped} on (\S+) "
        r"\(last step (\d+), \w+.*\) is silent",
        message,
    )
    assert found and found[1] == socket.gethostname(), message
    accused = set(re.findall(r"rank (\d) on \S+ .* is silent", message))
    assert accused == {stopped} and "Traceback" not in message, message
    # A rank says where it stands each 0.6 s: by then it may be some steps further.
    assert steps - 15 <= int(found[2]) <= steps + 2
