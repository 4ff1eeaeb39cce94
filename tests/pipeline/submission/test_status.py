"""`status`: what is shown of every job, whatever one of their records holds."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import scheduler
from jobs.spec import JobState, Status, SubmitError
from pipeline.config.schema import CancelConfig, StatusConfig
from pipeline.runs import job_record
from pipeline.submission import cancel, staging, status

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"id": "good", "verb": "shard", "run": "runs/good", "folder": "runs/good", "number": "1_2",
        "cluster": {"scheduler": "local"}, "submitted": "2026-01-01T00:00:00Z"}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, with one readable job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job_record.write(job_record.SubmittedJob(**GOOD))
    job_record.point_to(job_record.SubmittedJob(**GOOD))
    (tmp_path / "runs" / "good" / "logs").mkdir()
    (tmp_path / "runs" / "good" / "logs" / "state-1").write_text("SUCCEEDED\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(GOOD, indent=1)[:9], "line 2 column"),
        ("", "line 1 column 1"),
        ("{}", "missing 7 required"),
        ("[1]", "no attribute"),
        ("\xff", "utf-8"),
        (json.dumps({**GOOD, "cluster": {"scheduler": "slurm", "planet": "x"}}), "planet"),
        (json.dumps({**GOOD, "cluster": None}), "mapping"),
        (json.dumps({**GOOD, "number": None}), "expected str"),
    ],
)
def test_a_record_that_is_none_is_a_line_with_its_file_and_hides_no_other(tmp_path, text, message):
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "jobs.json").write_text(text, encoding="latin-1")
    jobs = {job["id"]: job for job in status.main(StatusConfig())["jobs"]}
    assert set(jobs) == {"bad", "good"}
    assert jobs["bad"]["state"] == "UNKNOWN" and jobs["good"]["state"] == "SUCCEEDED"
    reason = jobs["bad"]["reason"]
    assert reason.startswith("runs/bad/jobs.json is not a valid job record (")
    assert message in reason
    lines = status.show({"jobs": list(jobs.values())}).splitlines()
    assert sorted(line.split()[:2] for line in lines) == [["bad", "UNKNOWN"], ["good", "SUCCEEDED"]]
    with pytest.raises(ValueError, match="runs/bad/jobs.json is not a valid job record") as refused:
        status.main(StatusConfig(id="bad"))
    assert "\n" not in str(refused.value)


@pytest.fixture
def live(monkeypatch):
    """The job of runs/a and the two of a sweep, all running; returns the numbers of the stopped."""
    stopped = []
    monkeypatch.setattr(
        scheduler, "status", lambda *_: Status(JobState.CANCELLED if stopped else JobState.RUNNING)
    )
    monkeypatch.setattr(scheduler, "cancel", lambda number, *_: stopped.append(number))
    train = {**GOOD, "verb": "train"}
    sweep = {"id": "sweep", "run": "runs/sweep", "folder": "runs/sweep", "number": "sweep"}
    points = ("runs/p0", "runs/p1")
    records = [{**train, "id": "a", "run": "runs/a", "folder": "runs/a", "number": "a"},
               {**train, **sweep, "points": points}]  # fmt: skip
    for record in records:
        job_record.write(job_record.SubmittedJob(**record))
        job_record.point_to(job_record.SubmittedJob(**record))
    return stopped


def moved(source, target):
    Path(target).parent.mkdir(exist_ok=True)
    Path(source).rename(target)


def linked(source, target):
    Path(target).symlink_to(Path(source).absolute())


# Row 46
@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        ("runs/a", "runs/b", "runs/b"),
        ("runs/a", "runs/b", "b"),
        ("runs/a", "other/a", "other/a"),
        ("runs/a", "other/a", "{here}/other/a/"),
        ("runs/p0", "runs/p2", "runs/p2"),
        ("runs/sweep", "runs/again", "file://{here}/runs/again"),
    ],
)
def test_the_record_in_a_copied_run_is_the_originals(tmp_path, live, source, target, name):
    shutil.copytree(source, target)
    name = name.format(here=tmp_path)
    for act in (lambda: cancel.main(CancelConfig(id=name)), lambda: job_record.find(name, "runs")):
        with pytest.raises(SubmitError, match="is a copy of a run and was not submitted"):
            act()
    assert not live and not job_record.cancelled(source)
    assert staging.existing_job(target).record is None  # it may be submitted while the first runs
    assert {job["id"] for job in status.main(StatusConfig())["jobs"]} == {"a", "good", "sweep"}
    cancel.main(CancelConfig(id=source))
    assert len(live) == 1 and job_record.cancelled(source) and not job_record.cancelled(target)


@pytest.mark.parametrize(
    ("change", "source", "target"),
    [(moved, "runs/a", "runs/b"), (moved, "runs/a", "other/a"), (linked, "runs/a", "runs/b"),
     (linked, "runs/p1", "runs/b")],
)  # fmt: skip
def test_the_record_of_a_moved_or_linked_run_is_its_own(live, change, source, target):
    change(source, target)
    assert cancel.main(CancelConfig(id=target))["id"] in ("a", "sweep")
    assert len(live) == 1


def test_schedulers_are_asked_about_several_jobs_at_a_time(tmp_path, monkeypatch):
    """A scontrol that answers once four are asked, and the jobs in their order."""
    (tmp_path / "scontrol").write_text(
        '#!/bin/bash\ntouch "$0.$4"\n'
        'for _ in {1..300}; do set -- "$0".*; [ $# -ge 4 ] && break; sleep 0.1; done\n'
        'echo "JobId=7 JobState=COMPLETED Restarts=$# ExitCode=0:0"\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in "abcd":
        place = f"runs/{name}"
        message = {**GOOD, "id": name, "run": place, "folder": place, "number": name}
        job_record.write(job_record.SubmittedJob(**{**message, "cluster": {"scheduler": "slurm"}}))
    jobs = status.main(StatusConfig())["jobs"]
    assert [job["id"] for job in jobs] == ["a", "b", "c", "d", "good"]
    assert [job["restarts"] for job in jobs[:4]] == [4] * 4


def test_a_bucket_that_does_not_answer_is_given_up_and_hides_no_other(tmp_path):
    program = (
        "import sys; from pipeline.runs import job_record; job_record.TIMEOUT = 1.0\n"
        "from pipeline.cli import main; sys.exit(main(['status', '--json']))"
    )
    (job_record.pointers() / "far").write_text("s3://bucket/runs/far")
    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **keys, "AWS_ENDPOINT_URL": endpoint},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    jobs = {job["id"]: job for job in json.loads(done.stdout)["jobs"]}
    assert jobs["good"]["state"] == "SUCCEEDED"
    assert jobs["far"]["state"] == "UNKNOWN"
    assert jobs["far"]["reason"].startswith("s3://bucket/runs/far: no answer within")
