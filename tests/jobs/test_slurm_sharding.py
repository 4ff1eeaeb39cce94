"""A sharding array on a real SLURM, its tasks killed at random, yields the reference set."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import slurm_status
from tests.support.sets import jpeg

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
TASKS, KILLS = 3, 4
# What training takes there, and more than this SLURM has: it would refuse the array.
SITE = """\
scheduler: slurm
nodes: 5
gpus_per_node: 8
sbatch: {gpu-bind: closest}
cpus_per_node: 1
memory_gb: 1
retries: 9
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """300 pictures of noise, about 20 MB: some twenty shards of 1 MB."""
    folder = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(3)
    for split, count in (("train", 260), ("val", 40)):
        (folder / split).mkdir()
        for i in range(count):
            pixels = draw.integers(0, 256, (208, 208, 3)).astype(np.uint8)
            (folder / split / f"{i:03d}.jpg").write_bytes(jpeg(pixels))
    return folder


def tasks():
    """Process ids of the tasks' `shard` processes, one for each attempt; srun is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"pipeline", b"shard"]:
            found.append(int(path.name))
    return found


def test_an_array_whose_tasks_are_killed_at_random_yields_the_reference_set(cli, slurm, source):
    words = [f"source={source}", "data.shard_mb=1", "data.min_side=64"]
    cli("shard", *words, "out=sets/reference")
    (cli.cwd / "site" / "cluster").mkdir(parents=True)
    (cli.cwd / "site" / "cluster" / "ours.yaml").write_text(SITE)
    on = ["cluster=ours", f"cluster.tasks={TASKS}"]
    message = cli("submit", "shard", *words, "out=sets/array", *on, "--json",
               env={"LACUNA_CONF": f"{cli.cwd}/site"})  # fmt: skip
    job = json.loads(message.stdout)["jobs"][0]
    assert "gpu" not in slurm.run("scontrol", "show", "job", job["number"])
    draw = random.Random(7)
    killed = 0
    while killed < KILLS:
        found = slurm_status.status(job["number"], job["folder"])
        assert found.state.live, "the array ended before it was killed often enough"
        if alive := tasks():
            time.sleep(draw.uniform(0, 1.5))
            victim = draw.choice(alive)
            if victim in tasks():
                os.kill(victim, signal.SIGKILL)
                killed += 1
        time.sleep(0.1)
    cli.until(lambda: not slurm_status.status(job["number"], job["folder"]).state.live, "the array")
    found = cli.status(job["id"])
    assert found["state"] == "SUCCEEDED" and len(found["elements"]) == TASKS
    # SLURM's own counter may hold more: elements split off a requeued array record inherit its.
    assert found["restarts"] >= KILLS
    logs = (cli.cwd / job["folder"] / "logs").glob("slurm-*.out")
    assert sum(log.read_text().count("task 0: Killed: requeue") for log in logs) == KILLS
    reference, array = (cli.cwd / "sets" / name for name in ("reference", "array"))
    assert (array / "manifest.json").read_bytes() == (reference / "manifest.json").read_bytes()
    assert tars(array) == tars(reference)
    cli("shard", "verify", "sets/array", "every_byte=true")


def tars(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.tar")}
