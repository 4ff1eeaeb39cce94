"""Processes wait long for one another to come, and not so long for one that has come and hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch import place

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import os, time
from datetime import timedelta
from pipeline import engine
from pipeline.compose import compose
import torch.distributed as dist

engine.AFTER_WATCH = timedelta(seconds=1)
late = os.environ["RANK"] == "1"
time.sleep(4 * late)
one = engine.Engine(compose("train", ["parallel.hang_timeout=1"]).config)
print("met", flush=True)
time.sleep(20 * late)
dist.barrier()
"""


@pytest.mark.slow
@pytest.mark.dist
def test_who_comes_late_is_waited_for_and_who_hangs_is_not():
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            cwd=ROOT,
            env={**os.environ, **worker, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker in place({}, 2).workers
    ]
    try:
        out, error = ranks[0].communicate(timeout=60)  # rank 1 came after four seconds
        assert "met" in out
        assert ranks[0].returncode and "Timed out" in error, error
        assert ranks[1].poll() is None  # it was given up while it still hung
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
