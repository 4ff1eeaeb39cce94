"""Verbs as jobs on this machine, whole: a chain from pictures to scores, and what it leaves."""

import json
import subprocess

import pytest

from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.dist]
PLANTED = "planted-secret-value"
RECIPE = [*(w for w in TINY if not w.startswith("tracking")), "processes=1"]


def mlflow_runs(cli):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{cli.cwd}/runs/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return {run.info.run_id: run for run in client.search_runs(experiments)}


@pytest.fixture(scope="module")
def chain(cli, photograph_folder):
    """shard, then train, then evaluate, submitted by one line; what submit said, and when ended."""
    secrets = cli.cwd / "config" / "lacuna" / "secrets.env"
    secrets.parent.mkdir(parents=True)
    secrets.write_text(f"PLANTED_TOKEN={PLANTED}\n")
    secrets.chmod(0o600)
    words = ["shard", f"source={photograph_folder}", "out=sets/a", "data.min_side=64", "then",
             "train", *RECIPE, "max_images=48", "run=runs/chained", "then",
             "evaluate", "limit=2", "protocol=musical", "protocol.size=64"]  # fmt: skip
    jobs = json.loads(cli("submit", *words, "cluster=local", "--json").stdout)["jobs"]
    before = mlflow_runs(cli)
    cli.until(lambda: not cli.look(jobs[-1]["folder"]).state.live, "the chain")
    return jobs, before


def test_a_chain_makes_a_set_a_run_and_its_scores(cli, chain):
    jobs, _ = chain
    states = {job["verb"]: cli.status(job["id"]) for job in jobs}
    assert {s["state"] for s in states.values()} == {"SUCCEEDED"}, states
    assert (cli.cwd / "sets" / "a" / "manifest.json").exists()
    assert list((cli.cwd / "runs" / "chained" / "checkpoints").glob("*48/state.json"))
    assert "PSNR dB" in cli("logs", jobs[-1]["id"]).stdout


def test_the_mlflow_run_is_made_at_submit_and_is_the_one_that_finishes(cli, chain):
    _, before = chain
    (made,) = before.values()
    assert made.info.status == "SCHEDULED"
    kept = json.loads((cli.cwd / "runs" / "chained" / "run.json").read_text())["mlflow_run_id"]
    after = mlflow_runs(cli)
    assert set(after) == set(before) == {kept}
    assert after[kept].info.status == "FINISHED"
    assert "g/l2" in after[kept].data.metrics


def test_a_planted_secret_stands_in_no_file_and_no_record(cli, chain):
    found = subprocess.run(
        ["grep", "-rlaF", PLANTED, "."], cwd=cli.cwd, capture_output=True, text=True
    )
    assert found.stdout.split() == ["./config/lacuna/secrets.env"]


def test_what_ran_was_the_commit_and_not_the_checkout(cli, chain):
    jobs, _ = chain
    for job in jobs:
        (code,) = (p for p in (cli.cwd / job["folder"] / "code").iterdir() if p.is_dir())
        assert (code / "pipeline" / "cli.py").exists()
        assert cli.status(job["id"])["commit"] == code.name
    asked = subprocess.run(["git", "-C", cli.code, "rev-parse", "HEAD"], capture_output=True)
    head = asked.stdout.decode().strip()
    assert head.startswith(code.name)
    assert json.loads((cli.cwd / "runs" / "chained" / "run.json").read_text())["commit"] == head
    (run,) = (r for r in mlflow_runs(cli).values() if r.info.run_name == "chained")
    assert run.data.tags["mlflow.source.git.commit"] == head
    assert run.data.tags["git.dirty"] == "false"


def test_a_sweep_is_a_parent_and_a_child_for_each_point_in_mlflow(cli, chain):
    words = ["train", *RECIPE, "data.url=sets/a", "max_images=8", "seed=1,2", "cluster=local"]
    (job,) = json.loads(cli("submit", *words, "--json").stdout)["jobs"]
    assert job["id"].startswith("sweep-")
    cli.until(lambda: not cli.look(job["folder"]).state.live, "the sweep")
    message = cli.status(job["id"])
    assert message["state"] == "SUCCEEDED" and len(message["points"]) == 2
    runs = mlflow_runs(cli)
    ids = [
        json.loads((cli.cwd / p / "run.json").read_text())["mlflow_run_id"]
        for p in message["points"]
    ]
    parents = {runs[i].data.tags["mlflow.parentRunId"] for i in ids}
    assert len(parents) == 1 and runs[parents.pop()].info.run_name == job["id"]
    assert {runs[i].data.params["seed"] for i in ids} == {"1", "2"}


def test_the_same_line_after_the_end_continues_the_run(cli, chain):
    words = ["train", *RECIPE, "data.url=sets/a", "run=runs/chained", "cluster=local"]
    cli("submit", *words, "max_images=64")
    cli.until(lambda: not cli.look("runs/chained").state.live, "the run")
    assert cli.status("chained")["state"] == "SUCCEEDED"
    steps = (cli.cwd / "runs" / "chained" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in steps] == list(range(8, 65, 8))
    assert len(json.loads((cli.cwd / "runs" / "chained" / "jobs.json").read_text())["before"]) == 1
