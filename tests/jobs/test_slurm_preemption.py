"""Ends after a warning, on a real SLURM: a preemption is never counted, a crash always is.

A job is warned by USR1 before its wall limit, by hand, and when SLURM takes its nodes for another.
"""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import slurm as backend
from jobs import slurm_status
from jobs.spec import Cluster, Job, State

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
SMALL = Cluster(scheduler="slurm", cpus_per_node=1, memory_gb=1, lead_seconds=10, retries=1,
                sbatch={"nodelist": "n1"})  # fmt: skip
SPOT = replace(SMALL, partition="spot", retries=0)
ONCE = '[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n'
PROGRAMS = {
    # Its save fails, at each start.
    "crashing": (SMALL, "trap 'exit 1' USR1\n"),
    # Its save fails, and nobody asks twice.
    "failing": (SPOT, f"{ONCE}trap 'exit 1' USR1\n"),
    # Its tasks do not hear the warning: SLURM kills them when the time of grace is over.
    "deaf": (replace(SPOT, nodes=2, cpus_per_node=2, sbatch={}), f"{ONCE}trap '' USR1\n"),
}
URGENT = "#!/bin/bash\n#SBATCH -N2 -c3 --mem=1G -o /dev/null\nsleep 1\n"


@pytest.fixture(scope="module")
def ends(slurm, tmp_path_factory):
    """What `status` said of each when it first called it over, and the crashes counted."""
    folder = tmp_path_factory.mktemp("warned")
    jobs = {}
    for name, (cluster, text) in PROGRAMS.items():
        program = folder / f"{name}.sh"
        program.write_text(f"#!/bin/bash\n{text}sleep 300 & wait\n")
        program.chmod(0o755)
        run = str(folder / name)
        made = Job(id=name, verb="train", arguments=(), run=run, folder=run)
        jobs[name] = backend.submit(made, replace(cluster, python=str(program))), Path(run, "logs")

    def now(name):
        number, logs = jobs[name]
        return slurm_status.status(number, logs.parent)

    slurm.wait(lambda: all(now(n).state is State.RUNNING for n in jobs), "all to run")
    (folder / "urgent").write_text(URGENT)
    slurm.run("sbatch", str(folder / "urgent"))
    end, warned, over = time.monotonic() + 90, 0.0, {}
    while len(over) < len(jobs) and time.monotonic() < end:
        found = {name: now(name) for name in jobs}
        over |= {n: f for n, f in found.items() if not f.state.live and n not in over}
        if time.monotonic() > warned + 1 and found["crashing"].restarts < 3:
            slurm.run("scancel", "--batch", "--signal=USR1", jobs["crashing"][0])
            warned = time.monotonic()
    for name in set(jobs) - set(over):
        over[name] = now(name)
        backend.cancel(jobs[name][0])
    return {n: (over[n], [p.read_text() for p in jobs[n][1].glob("failures-*")]) for n in jobs}


def test_a_job_that_crashes_after_each_warning_is_retried_as_often_as_allowed(ends):
    found, counted = ends["crashing"]
    assert (found.state, found.restarts, counted) == (State.FAILED, 1, ["2\n"])
    assert found.reason == "crashed 2 times, last exit 1"


@pytest.mark.parametrize("name", ["deaf", "failing"])
def test_a_preempted_job_goes_on_uncounted_however_its_tasks_ended(ends, name):
    found, counted = ends[name]
    assert (found.state, found.restarts, counted) == (State.SUCCEEDED, 1, [])
