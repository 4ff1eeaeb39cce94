"""Ends that a job does not choose, on a real SLURM: after a warning, and by somebody past us.

A job is warned by USR1 before its wall limit, by hand, and when SLURM takes its nodes for another:
a preemption is never counted, a crash always is. What is over, `runs close` ends in MLflow too.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import slurm as backend
from jobs import slurm_script, slurm_status
from jobs.spec import Cluster, Job, JobState
from pipeline.runs import job_record
from pipeline.tracking.delivery import HEARTBEAT
from tests.conftest import TINY

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

RECIPE = [w for w in TINY if not w.startswith("tracking")]
HELD = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_node=1",
        "cluster.memory_gb=1", "cluster.sbatch={hold: null}"]  # fmt: skip
NAMES = ("cancelled", "waits", "forgotten", "lately")
FORGOTTEN = "999999"


@pytest.fixture(scope="module", autouse=True)
def begun(slurm, tmp_path_factory):
    """These jobs live while other tests run: most of it is SLURM's own waiting."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(live, slurm, tmp_path_factory.mktemp("warned"))


@pytest.fixture(scope="module")
def ends(begun):
    return begun.result()


def submit(made, cluster):
    return backend.submit(made, cluster, slurm_script.render(made, cluster))


def live(slurm, folder):
    """What `status` said of each when it first called it over, and the crashes counted."""
    jobs = {}
    for name, (cluster, text) in PROGRAMS.items():
        program = folder / f"{name}.sh"
        program.write_text(f"#!/bin/bash\n{text}sleep 300 & wait\n")
        program.chmod(0o755)
        run = str(folder / name)
        made = Job(id=name, verb="train", arguments=(), run=run, folder=run)
        jobs[name] = submit(made, replace(cluster, python=str(program))), Path(run, "logs")

    def now(name):
        number, logs = jobs[name]
        return slurm_status.status(number, logs.parent)

    slurm.wait(lambda: all(now(n).state is JobState.RUNNING for n in jobs), "all to run")
    (folder / "urgent").write_text(URGENT)
    slurm.run("sbatch", str(folder / "urgent"))
    end, warned, over = time.monotonic() + 280, 0.0, {}
    while len(over) < len(jobs) and time.monotonic() < end:
        found = {name: now(name) for name in jobs}
        over |= {n: f for n, f in found.items() if not f.state.live and n not in over}
        if time.monotonic() > warned + 1 and found["crashing"].restarts < 3:
            slurm.run("scancel", "--batch", "--signal=USR1", jobs["crashing"][0])
            warned = time.monotonic()
        time.sleep(0.05)
    for name in set(jobs) - set(over):
        over[name] = now(name)
        backend.cancel(jobs[name][0])
    return {n: (over[n], [p.read_text() for p in jobs[n][1].glob("failures-*")]) for n in jobs}


@pytest.fixture(scope="module")
def submitted(cli, slurm, small_set):
    """Trainings that wait in the queue: one is cancelled by SLURM's own command, and the second of
    a sweep's points; of two SLURM knows nothing any more, one was last heard of two days ago."""
    from mlflow.tracking import MlflowClient

    numbers = {}
    for name in NAMES:
        words = ["train", *RECIPE, f"data.url={small_set}", f"run=runs/{name}", *HELD, "--json"]
        numbers[name] = json.loads(cli("submit", *words).stdout)["jobs"][0]["number"]
    slurm.run("scancel", numbers["cancelled"])
    folder = cli.cwd / "runs" / "cancelled"
    slurm.wait(lambda: not slurm_status.status(numbers["cancelled"], folder).state.live, "its end")
    words = [*RECIPE, f"data.url={small_set}", "seed=1,2", *HELD]
    message = cli("submit", "train", *words, "--json").stdout
    sweep = json.loads(message)["jobs"][0]
    slurm.run("scancel", f"{sweep['number']}_1")
    points = [point.rpartition("/")[2] for point in cli.status(sweep["id"])["points"]]
    client = MlflowClient(f"sqlite:///{cli.cwd}/runs/mlflow.db")
    for name in NAMES[2:]:
        slurm.run("scancel", numbers[name])
        path = cli.cwd / "runs" / name / job_record.NAME
        path.write_text(path.read_text().replace(f'"{numbers[name]}"', f'"{FORGOTTEN}"'))
    old = json.loads((cli.cwd / "runs" / "forgotten" / "run.json").read_text())["mlflow_run_id"]
    client.set_tag(old, HEARTBEAT, str(int((time.time() - 2 * 86400) * 1000)))
    return client, points


def folder_name(title):
    """A run's folder; the keys of a sweep's point follow in its name."""
    return title.partition(" ")[0]


def statuses(client):
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {folder_name(run.info.run_name): run.info.status for run in found}


def test_only_what_slurm_knows_to_be_over_or_has_long_forgotten_is_closed(cli, submitted):
    client, points = submitted
    before = statuses(client)
    waiting = {name: "SCHEDULED" for name in (*NAMES, *points)}
    assert {name: before[name] for name in waiting} == waiting
    closed = json.loads(cli("runs", "close", "--json").stdout)["closed"]
    over = {"cancelled": "KILLED", "forgotten": "KILLED", points[1]: "KILLED"}
    assert {folder_name(each["name"]): each["status"] for each in closed} == over
    reasons = {folder_name(each["name"]): each["reason"] for each in closed}
    assert "is CANCELLED" in reasons["cancelled"] and "is CANCELLED" in reasons[points[1]]
    assert f"job {FORGOTTEN} is UNKNOWN: SLURM has forgotten the job" in reasons["forgotten"]
    assert statuses(client) == {**before, **over}


def test_a_job_that_crashes_after_each_warning_is_retried_as_often_as_allowed(ends):
    found, counted = ends["crashing"]
    assert (found.state, found.restarts, counted) == (JobState.FAILED, 1, ["2\n"])
    assert found.reason == "crashed 2 times, last exit 1"


@pytest.mark.parametrize("name", ["deaf", "failing"])
def test_a_preempted_job_goes_on_uncounted_however_its_tasks_ended(ends, name):
    found, counted = ends[name]
    assert (found.state, found.restarts, counted) == (JobState.SUCCEEDED, 1, [])
