"""The real training on two nodes of a real SLURM: whatever ends a job, its losses go on to the bit.

The reference is the same command, undisturbed, on this machine with the same two processes.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from jobs import slurm_status
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
RECIPE = [w for w in TINY if not w.startswith("checkpoint")]
CLUSTER = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=0", "cluster.time=null",
           "cluster.cpus_per_node=1", "cluster.memory_gb=2", "cluster.retries=1"]  # fmt: skip
FAR = 4000


def lines(cli, run):
    path = cli.cwd / "runs" / run / "steps.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def seen(cli, run):
    done = lines(cli, run)
    return json.loads(done[-1])["images_seen"] if done else 0


@pytest.fixture(scope="module")
def submit(cli, small_set, slurm):
    """`submit(run, words…)`: a training on two nodes; returns SLURM's job id."""

    def call(run, *words):
        message = cli("submit", "train", *RECIPE, f"data.url={small_set}", f"run=runs/{run}",
                   *CLUSTER, *words, "--json")  # fmt: skip
        return json.loads(message.stdout)["jobs"][0]["number"]

    return call


@pytest.fixture(scope="module")
def lives(cli, submit, slurm):
    """Two runs through everything that a cluster does to a job; what `status` said at their ends.

    `many` loses a node, is preempted, has a worker killed, which costs no restart of the job, and
    then a launcher, which does. `wall` meets its wall limit twice.
    Then both are cancelled. They share the nodes.
    """
    numbers = {}

    def restarted(run, times):
        folder = cli.cwd / "runs" / run
        cli.until(lambda: slurm_status.status(numbers[run], folder).restarts >= times,
                  f"restart {times} of {run}")  # fmt: skip

    def advanced(run, images=24):
        goal = seen(cli, run) + images
        cli.until(lambda: seen(cli, run) >= goal, f"{run} to get on")

    # Saved every 24 images: what a lost node or process costs is trained again.
    numbers["many"] = submit(
        "many", "cluster.partition=spot", "cluster.cpus_per_node=2", f"max_images={FAR}",
        "checkpoint.every_images=24", "cluster.lead_seconds=30")  # fmt: skip
    advanced("many", 40)
    slurm.lose("n2")
    restarted("many", 1)
    slurm.restore("n2")
    numbers["wall"] = submit(
        "wall", "cluster.time=1", "cluster.lead_seconds=20", "cluster.cpus_per_node=1",
        f"max_images={FAR}", f"checkpoint.every_images={FAR}")  # fmt: skip
    advanced("many")
    urgent = "#!/bin/bash\n#SBATCH -N2 -c3 --mem=1G -o /dev/null\nsleep 2\n"
    Path(slurm.root, "urgent").write_text(urgent)
    slurm.run("sbatch", str(Path(slurm.root, "urgent")))
    restarted("many", 2)
    advanced("many")
    os.kill(worker(rank=1, run="many"), signal.SIGKILL)
    cli.until(lambda: in_place(cli, "many"), "the workers of many to start again in place")
    advanced("many")
    restarted("many", 2)
    assert slurm_status.status(numbers["many"], cli.cwd / "runs" / "many").restarts == 2
    os.kill(parent(worker(rank=1, run="many")), signal.SIGKILL)
    restarted("many", 3)
    advanced("many")
    cli("cancel", "many")
    restarted("wall", 2)
    cli.until(lambda: seen(cli, "wall") >= 40, "five steps of wall")  # also on a busy machine
    cli("cancel", "wall")
    for run, number in numbers.items():
        folder = cli.cwd / "runs" / run
        cli.until(
            lambda n=number, f=folder: not slurm_status.status(n, f).state.live, f"end of {run}"
        )
        assert saved(cli, run) == seen(cli, run)
    return {run: cli.status(run) for run in numbers}


def saved(cli, run):
    """Images seen at the newest checkpoint."""
    folder = cli.cwd / "runs" / run / "checkpoints"
    return max((int(p.parent.name) for p in folder.glob("*/state.json")), default=0)


def in_place(cli, run):
    """The restarts in place that have taken their first step."""
    facts = json.loads((cli.cwd / "runs" / run / "run.json").read_text())
    return [each for each in facts.get("restarts", []) if "seconds" in each]


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def worker(rank, run):
    """Process id of a training process, seen from outside its node's namespaces.

    The oldest: one that waits for the next failure came later.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes()
            started = int((path / "stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and f"/{run}.yaml".encode() in command:
            found[started, int(path.name)] = int(path.name)
    if found:
        return found[min(found)]
    raise AssertionError(f"no worker {rank} of {run}")


@pytest.fixture(scope="module")
def reference(cli, lives, small_set):
    """steps.jsonl of the same training that nothing happened to, as long as the longer of both."""
    length = max(seen(cli, "many"), seen(cli, "wall"))
    cli("train", *RECIPE, f"data.url={small_set}", "run=runs/reference", "processes=2",
        f"max_images={length}", "checkpoint.every_images=100000")  # fmt: skip
    return lines(cli, "reference")


def test_losses_are_the_undisturbed_ones_after_node_loss_preemption_and_a_crash(cli, reference):
    got = lines(cli, "many")
    assert len(got) >= 12
    assert got == reference[: len(got)]


def test_losses_are_the_undisturbed_ones_after_two_wall_limits(cli, reference):
    got = lines(cli, "wall")
    assert len(got) >= 5
    assert got == reference[: len(got)]


def test_both_kept_their_job_through_all_restarts(lives):
    assert lives["many"]["restarts"] == 3 and lives["wall"]["restarts"] >= 2
    assert {message["state"] for message in lives.values()} == {"CANCELLED"}


def test_only_the_crash_counted_against_the_retries(cli, lives):
    folder = cli.cwd / "runs" / "many" / "logs"
    assert [p.read_text() for p in folder.glob("failures-*")] == ["1\n"]


def test_status_shows_the_worker_that_cost_no_restart_of_the_job(cli, lives):
    (again,) = lives["many"]["restarts_in_place"]
    assert again["cause"].startswith("rank 1 on n2 was killed by SIGKILL")
    assert 0 < again["seconds"] < 120 and again["repeated"] % 8 == 0


def test_a_cancelled_run_is_cancelled_and_submitting_it_again_finishes_it(cli, lives, submit):
    length = seen(cli, "wall") + 16
    submit("wall", f"max_images={length}", "checkpoint.every_images=100000")
    cli.until(lambda: not cli.look("runs/wall").state.live, "wall to finish")
    assert cli.status("wall")["state"] == "SUCCEEDED"
    assert [json.loads(line)["images_seen"] for line in lines(cli, "wall")] == list(
        range(8, length + 1, 8)
    )


def test_a_run_that_is_live_is_not_submitted_twice(cli, submit, small_set):
    submit("twice", "max_images=8", "cluster.sbatch={hold: null}")
    again = cli("submit", "train", *RECIPE, f"data.url={small_set}", "run=runs/twice", *CLUSTER,
                ok=False)  # fmt: skip
    assert again.returncode == 2
    assert "twice is QUEUED" in again.stderr and again.stderr.count("\n") == 1
    cli("cancel", "twice")


def advance(cli, run, images):
    goal = seen(cli, run) + images
    cli.until(lambda: seen(cli, run) >= goal, f"{run} to get on")


@pytest.fixture(scope="module")
def ends(cli, submit, slurm, small_set):
    """Jobs that share the nodes to their ends, and what MLflow said of `tracked` on the way.

    A worker of `exhausted` is killed, with no retry left. `tracked` is warned by USR1, goes
    on, and is cancelled. Beside them run `doctor` and a smoke test, whose ids are returned.
    """
    from mlflow.tracking import MlflowClient

    words = [*RECIPE, f"data.url={small_set}", "run=runs/smoked", "smoke=true", *CLUSTER,
             "cluster.nodes=1"]  # fmt: skip
    doctor, smoke = (
        json.loads(cli("submit", verb, *more, "--json").stdout)["jobs"][0]
        for verb, more in (("doctor", CLUSTER), ("train", words))
    )
    far = [f"max_images={FAR}", f"checkpoint.every_images={FAR}"]
    number = submit("tracked", *far, "tracking.enabled=true", "cluster.sbatch={hold: null}")
    lost = submit("exhausted", *far, "cluster.retries=0")
    client = MlflowClient(f"sqlite:///{cli.cwd}/runs/mlflow.db")
    ids = [e.experiment_id for e in client.search_experiments()]

    def run():
        (found,) = client.search_runs(ids)
        return found.info

    def until(wanted):
        cli.until(lambda: run().status == wanted, f"MLflow to say {wanted}")

    assert run().status == "SCHEDULED"
    slurm.run("scontrol", "release", number)
    until("RUNNING")
    advance(cli, "tracked", 16)
    slurm.run("scancel", "--batch", "--signal=USR1", number)
    until("SCHEDULED")
    saved_at = seen(cli, "tracked")
    advance(cli, "exhausted", 8)
    os.kill(worker(rank=1, run="exhausted"), signal.SIGKILL)
    until("RUNNING")
    advance(cli, "tracked", 16)
    cli("cancel", "tracked")
    jobs = [(number, "runs/tracked"), (lost, "runs/exhausted"),
            *((job["number"], job["folder"]) for job in (doctor, smoke))]  # fmt: skip
    for each, folder in jobs:
        cli.until(lambda n=each, f=cli.cwd / folder: not slurm_status.status(n, f).state.live,
                  f"the end of {folder}")  # fmt: skip
    until("KILLED")
    steps = [m.step for m in client.get_metric_history(run().run_id, "g/l2")]
    return {"doctor": doctor["id"], "smoke": smoke["id"], "saved_at": saved_at, "steps": steps}


def test_retries_exhausted_end_in_the_line_of_the_rank_that_was_killed(cli, ends):
    message = cli.status("exhausted")
    assert (message["state"], message["restarts"]) == ("FAILED", 0)
    assert message["reason"] == "crashed 1 times, last exit 1"
    assert message["error"].startswith("rank 1 on n2 was killed by SIGKILL")
    assert "rank 0 on n1: " in cli("logs", "exhausted").stdout  # it had something to say too


def test_one_mlflow_run_told_the_truth_through_a_requeue_and_a_cancel(cli, ends):
    assert cli.status("tracked")["state"] == "CANCELLED"
    assert min(ends["steps"]) == 8
    assert ends["saved_at"] < max(ends["steps"]) == seen(cli, "tracked")


def test_losses_are_the_undisturbed_ones_after_usr1(cli, ends, reference):
    got = lines(cli, "tracked")[: len(reference)]
    assert 8 * len(got) > ends["saved_at"]  # it went on
    assert got == reference[: len(got)]
    assert cli.status("tracked")["restarts"] == 1


@pytest.mark.parametrize(
    ("job", "said"),
    [("doctor", "2 nodes x 1 processes agree"), ("smoke", "projected_hours: ")],
)  # fmt: skip
def test_doctor_and_a_smoke_test_run_as_jobs(cli, ends, job, said):
    logs = cli("logs", ends[job]).stdout
    assert cli.status(ends[job])["state"] == "SUCCEEDED", logs
    assert said in logs
    assert not list((cli.cwd / "runs").glob("smoked*"))


def test_a_point_of_a_live_sweep_is_not_submitted_again_and_leads_to_the_sweep(
    cli, slurm, small_set
):
    sweep = [
        *RECIPE,
        f"data.url={small_set}",
        "max_images=8",
        *CLUSTER,
        "cluster.sbatch={hold: null}",
    ]
    made = json.loads(cli("submit", "train", *sweep, "seed=1,2", "--json").stdout)["jobs"][0]
    again = cli("submit", "train", *sweep, "seed=2", ok=False)
    other = cli("submit", "train", *sweep, "seed=2,3", ok=False)
    for refused in (again, other):
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert f"{made['id']} is QUEUED" in refused.stderr
    points = cli.status(made["id"])["points"]
    # A colleague's machine knows the point by its folder alone.
    home = {"XDG_CACHE_HOME": f"{cli.cwd}/colleague"}
    message = cli("status", f"{cli.cwd}/{points[1]}", "--json", env=home).stdout
    assert [job["id"] for job in json.loads(message)["jobs"]] == [made["id"]]
    cli("cancel", made["id"])


def test_a_job_that_slurm_refuses_leaves_nothing(cli, slurm, small_set):
    words = [*RECIPE, f"data.url={small_set}", "run=runs/refused", *CLUSTER]
    message = cli("submit", "train", *words, "cluster.partition=nowhere", ok=False)
    assert message.returncode == 2 and "invalid partition" in message.stderr
    assert not (cli.cwd / "runs" / "refused").exists()


def test_a_configuration_error_in_the_job_is_not_retried_and_its_line_is_shown(cli, submit, slurm):
    number = submit("wrong", "max_images=8", "cluster.sbatch={hold: null}")
    config = cli.cwd / "runs" / "wrong" / "config.yaml"
    config.write_text(config.read_text().replace("batch: 8", "batch: 7"))
    slurm.run("scontrol", "release", number)
    cli.until(lambda: not cli.look("runs/wrong").state.live, "the failure")
    found = cli.status("wrong")
    assert found["restarts"] == 0
    assert found["reason"] == "configuration error, not retried"
    assert "batch=7 is not divisible" in found["error"]
