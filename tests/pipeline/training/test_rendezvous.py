"""Processes wait long for one another to come, and not so long for one that has come and hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch.topology import Place, free_port, place

ROOT = Path(__file__).resolve().parents[3]
RANK = """
import os, time
from datetime import timedelta
from pipeline.training import engine
from pipeline.config.compose import compose
import torch.distributed as dist

engine.AFTER_WATCHDOG = timedelta(seconds=1)
late = os.environ["RANK"] == "1"
time.sleep(4 * late)
one = engine.Engine(compose("train", ["parallel.hang_timeout=1"]).config)
print("met", flush=True)
time.sleep(20 * late)
dist.barrier()
"""


@pytest.mark.slow
@pytest.mark.dist
def test_a_late_rank_is_waited_for_and_a_hanging_one_is_not():
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            cwd=ROOT,
            env={**os.environ, **worker, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker in (Place(2, node, 1, "127.0.0.1", port).workers[0] for node in (0, 1))
    ]
    try:
        out, error = ranks[0].communicate(timeout=60)  # rank 1 came after four seconds
        waits = f"rank 0: waiting up to 30 minutes for all 2 processes at 127.0.0.1:{port}"
        assert waits in error.splitlines()
        assert "met" in out
        assert ranks[0].returncode and "Timed out" in error, error
        assert ranks[1].poll() is None  # it was given up while it still hung
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


NEXT = """
import sys, time
from pipeline.config.compose import compose
from pipeline.training.engine import Engine

one = Engine(compose("train", []).config)
print(one.gather(sys.argv[1]), flush=True)
if sys.argv[1] == "old":
    time.sleep(60)
one.close()
"""


@pytest.mark.slow
@pytest.mark.dist
def test_a_group_on_the_port_of_a_killed_one_meets_only_its_own_ranks():
    """Rank 1 comes first, while rank 1 of before still hangs: the store of before went with rank 0.

    What a launcher's restart does on SLURM and Kubernetes, where the port stays.
    """
    shared = place({}, 2).workers

    def rank(number, group):
        return subprocess.Popen(
            [sys.executable, "-c", NEXT, group],
            cwd=ROOT,
            env={**os.environ, **shared[number], "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    old, new = [rank(0, "old"), rank(1, "old")], []
    try:
        for one in old:
            assert one.stdout.readline() == "['old', 'old']\n"
        new.append(rank(1, "new"))
        old[0].kill()
        old[0].wait()
        new.append(rank(0, "new"))
        for one in new:
            out, error = one.communicate(timeout=60)
            assert one.returncode == 0 and out == "['new', 'new']\n", error
        assert old[1].poll() is None
    finally:
        for one in [*old, *new]:
            one.kill()
            one.communicate()
