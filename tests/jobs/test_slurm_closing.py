"""`runs close` beside a real SLURM: a job that somebody cancelled past us, and one that waits."""

import json
import time

import pytest

from jobs import slurm_status
from pipeline import jobrecord
from pipeline.delivery import HEARTBEAT
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
RECIPE = [w for w in TINY if not w.startswith("tracking")]
HELD = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_node=1",
        "cluster.memory_gb=1", "cluster.sbatch={hold: null}"]  # fmt: skip
NAMES = ("cancelled", "waits", "forgotten", "lately")
FORGOTTEN = "999999"


@pytest.fixture(scope="module")
def submitted(cli, slurm, small_set):
    """Trainings that wait in the queue: one is cancelled by SLURM's own command, and the second of
    a sweep's points; of two SLURM knows nothing any more, one was last heard of two days ago."""
    from mlflow.tracking import MlflowClient

    numbers = {}
    for name in NAMES:
        told = cli("submit", "train", *RECIPE, f"data.url={small_set}", f"run=runs/{name}", *HELD,
                   "--json")  # fmt: skip
        numbers[name] = json.loads(told.stdout)["jobs"][0]["number"]
    slurm.run("scancel", numbers["cancelled"])
    folder = cli.cwd / "runs" / "cancelled"
    slurm.wait(lambda: not slurm_status.status(numbers["cancelled"], folder).state.live, "its end")
    words = [*RECIPE, f"data.url={small_set}", "seed=1,2", *HELD]
    told = cli("submit", "train", *words, "--json").stdout
    sweep = json.loads(told)["jobs"][0]
    slurm.run("scancel", f"{sweep['number']}_1")
    points = [point.rpartition("/")[2] for point in cli.status(sweep["id"])["points"]]
    client = MlflowClient(f"sqlite:///{cli.cwd}/runs/mlflow.db")
    for name in NAMES[2:]:
        slurm.run("scancel", numbers[name])
        path = cli.cwd / "runs" / name / jobrecord.NAME
        path.write_text(path.read_text().replace(f'"{numbers[name]}"', f'"{FORGOTTEN}"'))
    old = json.loads((cli.cwd / "runs" / "forgotten" / "run.json").read_text())["mlflow_run_id"]
    client.set_tag(old, HEARTBEAT, str(int((time.time() - 2 * 86400) * 1000)))
    return client, points


def statuses(client):
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run.info.status for run in found}


def test_only_what_slurm_knows_to_be_over_or_has_long_forgotten_is_closed(cli, submitted):
    client, points = submitted
    before = statuses(client)
    waiting = {name: "SCHEDULED" for name in (*NAMES, *points)}
    assert {name: before[name] for name in waiting} == waiting
    closed = json.loads(cli("runs", "close", "--json").stdout)["closed"]
    over = {"cancelled": "KILLED", "forgotten": "KILLED", points[1]: "KILLED"}
    assert {each["name"]: each["status"] for each in closed} == over
    reasons = {each["name"]: each["reason"] for each in closed}
    assert "is CANCELLED" in reasons["cancelled"] and "is CANCELLED" in reasons[points[1]]
    assert f"job {FORGOTTEN} is UNKNOWN: SLURM has forgotten it" in reasons["forgotten"]
    assert statuses(client) == {**before, **over}
