"""`runs close`: which runs are over is what real processes, and a real scheduler, say."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import local
from jobs.spec import Cluster, Job
from pipeline.comparison import runs
from pipeline.config.schema import RunsConfig
from pipeline.runs import job_record
from pipeline.runs.run_json import update_run_json
from pipeline.tracking.client import connect, experiment_id, tracking_uri
from pipeline.tracking.delivery import HEARTBEAT
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pipeline.runs.folder import folder_at, held\n"
    "with held(folder_at(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No jobs of this machine's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made(root):
    """`made(name, status, days)`: a run's folder; its MLflow run has been silent for so long."""

    def make(name, status, days=0, **facts):
        uri = tracking_uri(str(root))
        client = connect(uri)
        experiment = experiment_id(client, uri, "me/recipe")
        run = client.create_run(experiment, run_name=name).info.run_id
        client.set_tag(run, HEARTBEAT, str(int((time.time() - days * 86400) * 1000)))
        client.update_run(run, status=status)
        update_run_json(str(root / name), mlflow_run_id=run, **facts)
        return root / name

    return make


def recorded(root):
    """Status and reason of each run as MLflow has them."""
    client = connect(tracking_uri(str(root)))
    listed = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {r.info.run_name: (r.info.status, r.data.tags.get("job.error", "")) for r in listed}


def close(root):
    closed = runs.main(RunsConfig(action="close", root=str(root)))["closed"]
    return {each["name"]: each["status"] for each in closed}


def submitted(run, script):
    """The script as the run's job on this machine; its process id."""
    program = run / "program"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    job = Job(id=run.name, verb="train", arguments=(), run=str(run), folder=str(run))
    number = local.submit(job, local.render(job, Cluster(python=str(program), retries=0)))
    job_record.write(job_record.SubmittedJob(
        id=run.name, verb="train", run=str(run), folder=str(run), number=number,
        cluster={"scheduler": "local"}, submitted=""))  # fmt: skip
    return int(number.partition("_")[0])


def over(run):
    return not job_record.read(str(run)).status().state.live


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_runs_are_closed_as_their_jobs_ended_and_none_whose_job_lives(root, made):
    ends = {"done": "exit 0", "crashed": "exit 3", "saved": "exit 75", "stopped": "sleep 60",
            "killed": "sleep 60", "lives": "sleep 60"}  # fmt: skip
    pids = {name: submitted(made(name, "SCHEDULED"), script) for name, script in ends.items()}
    os.kill(pids["stopped"], signal.SIGTERM)  # by hand, not by our `cancel`
    os.killpg(os.getpgid(pids["killed"]), signal.SIGKILL)
    wait(lambda: all(over(root / name) for name in ends if name != "lives"))
    would = runs.dry_run(RunsConfig(action="close", root=str(root)))
    assert would.startswith("would close 5 runs: ") and "lives" not in would
    expected = {"done": "FINISHED", "crashed": "FAILED", "saved": "KILLED", "stopped": "KILLED",
                "killed": "FAILED"}  # fmt: skip
    try:
        assert close(root) == expected
        ends_in_mlflow = recorded(root)
        assert {name: status for name, (status, _) in ends_in_mlflow.items()} == {
            **expected, "lives": "SCHEDULED"
        }  # fmt: skip
        assert "is FAILED: crashed 1 times, last exit 3" in ends_in_mlflow["crashed"][1]
        assert "is FAILED: the process was killed" in ends_in_mlflow["killed"][1]
        assert "is CANCELLED" in ends_in_mlflow["stopped"][1]
        assert close(root) == {}
    finally:
        os.killpg(os.getpgid(pids["lives"]), signal.SIGKILL)


def test_a_run_whose_process_is_gone_is_closed_and_one_that_is_held_never(root, made):
    here = {"launcher": {"host": socket.gethostname(), "pid": 1}}
    there = {"launcher": {"host": "another machine", "pid": 1}}
    gone = made("gone", "RUNNING", **here)
    held = made("held", "RUNNING", 2, **here)
    made("silent", "RUNNING", 2, **there)
    made("elsewhere", "RUNNING", **there)
    made("waits", "SCHEDULED", 2)  # of a job that somebody submitted in another way
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE)
        for run in (gone, held)
    ]
    try:
        for holder in holders:
            assert holder.stdout.readline() == b"held\n"
        assert close(root) == {"silent": "KILLED"}
        holders[0].kill()
        holders[0].wait()
        assert close(root) == {"gone": "KILLED"}
        assert recorded(root)["gone"] == ("KILLED", "its processes are gone and recorded no end")
        left = {name: recorded(root)[name][0] for name in ("held", "elsewhere", "waits")}
        assert left == {"held": "RUNNING", "elsewhere": "RUNNING", "waits": "SCHEDULED"}
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def test_a_job_that_ended_and_is_trained_again_by_hand_is_held(root, made):
    run = made("again", "RUNNING")
    submitted(run, "exit 3")
    wait(lambda: over(run))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert close(root) == {}
    finally:
        holder.kill()
        holder.wait()
    assert close(root) == {"again": "FAILED"}


def test_a_run_whose_end_could_not_be_sent_gets_that_end(root, made):
    run = made("unsent", "RUNNING")
    (run / "spool").mkdir()
    (run / "spool" / "state.json").write_text(json.dumps({"uid": "a", "ended": "FINISHED"}))
    assert "`sync " in runs.dry_run(RunsConfig(action="close", root=str(root)))
    assert close(root) == {"unsent": "FINISHED"}
    assert recorded(root)["unsent"] == ("FINISHED", "")


def test_a_job_that_cannot_be_asked_about_is_left_alone(root, made, monkeypatch, tmp_path, capsys):
    run = made("unknown", "SCHEDULED", 2)
    job_record.write(job_record.SubmittedJob(
        id="unknown", verb="train", run=str(run), folder=str(run), number="7",
        cluster={"scheduler": "slurm"}, submitted=""))  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    assert close(root) == {}
    assert "unknown is not closed: scontrol is not on the PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_whose_launcher_was_killed_is_closed_and_not_before(root, small_set):
    words = [w for w in TINY if not w.startswith("tracking")]
    words += [f"data.url={small_set}", f"run={root}/killed", "max_images=100000"]
    training = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        steps = root / "killed" / "steps.jsonl"
        wait(lambda: steps.exists() and steps.read_text().count("\n") > 2, 120)
        wait(lambda: [status for status, _ in recorded(root).values()] == ["RUNNING"])
        assert close(root) == {}
    finally:
        training.kill()
        training.wait()
    wait(lambda: close(root) == {"killed": "KILLED"})
