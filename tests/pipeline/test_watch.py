"""Who is named when a group of processes stands still, and who when it is slow."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.watch import culprits, straggler

ROOT = Path(__file__).resolve().parents[2]


def said(marks, step, doing, beat, host="node"):
    return {"place": [marks, step, doing], "beat": beat, "host": host}


def test_a_rank_whose_beat_stands_still_is_silent():
    before = [said(8, 3, "computing", 1), said(8, 3, "computing", 5, "far")]
    after = [said(8, 3, "computing", 2), said(8, 3, "computing", 5, "far")]
    assert culprits(before, after) == "rank 1 on far (last step 3, computing) is silent"


def test_where_all_speak_the_one_that_did_least_is_behind():
    before = [said(8, 3, "computing", 1), said(7, 3, "waiting for data", 1, "far")]
    after = [said(8, 3, "computing", 2), said(7, 3, "waiting for data", 2, "far")]
    told = culprits(before, after)
    assert told.startswith("rank 1 on far (last step 3, waiting for data) is behind")
    assert told.endswith("the furthest is at step 3, computing")


def test_where_all_stand_at_one_mark_none_is_blamed():
    looks = [[said(8, 3, "computing", beat), said(8, 3, "computing", beat)] for beat in (1, 2)]
    assert culprits(*looks) == "every rank stands at step 3, computing"


def test_a_rank_that_never_spoke_is_named():
    told = culprits([said(1, 0, "starting", 1), None], [said(1, 0, "starting", 2), None])
    assert told == "rank 1 on an unknown host (it never spoke) is silent"


def pace(wait, cpu, host="node"):
    return {"wait": wait, "cpu": cpu, "host": host}


def test_a_straggler_is_named_with_what_it_waits_for():
    ratio, line = straggler([pace(1, 99), pace(0, 100), pace(80, 120, "slow"), pace(2, 98)])
    assert ratio == 2
    assert line == (
        "straggler: rank 2 on slow spends 200 ms a step (80 waiting for data), "
        "the median rank 100 ms"
    )
    assert straggler([pace(1, 99), pace(0, 100)])[1] is None
    assert straggler([pace(0, 1), pace(0, 2), pace(0, 9)])[1] is None  # a few ms are nobody's fault


@pytest.mark.slow
@pytest.mark.dist
def test_a_stopped_rank_is_named_with_its_host_and_last_step(small_set, tmp_path):
    import psutil
    from conftest import TINY

    words = [*TINY, f"data.url={small_set}", f"run={tmp_path}/run", "processes=2"]
    words += ["max_images=100000", "parallel.hang_timeout=6"]
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
        victim = next(w for w in workers if w.environ()["RANK"] == "1")
        other = next(w for w in workers if w is not victim)
        victim.send_signal(signal.SIGSTOP)
        steps = log.read_text().count("\n")
        other.wait(60)  # it leaves, though its collective does not return
        victim.send_signal(signal.SIGCONT)
        assert process.wait(150) == 1
        told = process.stderr.read()
    finally:
        process.kill()
    found = re.search(
        r"for 6 s \(parallel.hang_timeout\): rank 1 on (\S+) \(last step (\d+), \w+.*\) is silent",
        told,
    )
    assert found and found[1] == socket.gethostname(), told
    # A rank says where it stands each 0.6 s: by then it may be some steps further.
    assert steps - 15 <= int(found[2]) <= steps + 2
