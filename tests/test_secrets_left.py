"""One secret of each kind is planted, and all that a run, a job and a model leave is read."""

import gzip
import os

import pytest

from pipeline.runs.run_json import read_run_json
from tests.conftest import TINY
from tests.pipeline.common.test_secrets import NAMES
from tests.support.trained import registered, scored

pytestmark = pytest.mark.slow
WORD = "correct-horse"
SHAPES = {  # made up, of the publishers' shapes
    "NOTE_A": "AKIAIOSFODNN7EXAMPLE",
    "NOTE_B": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "NOTE_C": "hf_abcdefghijklmnopqrstuvwx",
    "HTTPS_PROXY_OF_SITE": "https://bob:hunter2-hunter2@proxy.example.org",
    "NOTE_D": "-----BEGIN PRIVATE KEY-----\nMIIplanted\n-----END PRIVATE KEY-----",
}
VALUES = {"AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghij", "hf_abcdefghij", "hunter2-hunter2",
          "MIIplanted", WORD}  # fmt: skip


def contents(folder):
    """(path, bytes) of every file below, compressed ones also as what they hold."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        yield path, str(path).encode() + data
        if data[:2] == b"\x1f\x8b":
            yield path, gzip.decompress(data)


def leaks(folder):
    return sorted(
        f"{path}: {value}"
        for path, data in contents(folder)
        for value in VALUES
        if value.encode() in data
    )


def test_no_planted_secret_is_in_what_a_run_a_job_and_a_model_leave(
    train, verb, tmp_path, monkeypatch, small_set
):
    planted = {name: f"{WORD}-{name.lower()}" for name, secret in NAMES.items() if secret}
    planted |= SHAPES
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "left" / "cache"))
    left = tmp_path / "left"
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{left}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    run = left / "runs" / "a"
    done = train(run, "max_images=16", "tracking.enabled=true", f"root={left}/runs")
    assert done.returncode == 0, done.stderr
    (left / "output").write_text(done.stdout + done.stderr)
    failed = train(left / "runs" / "b", f"data.url=sets/{planted['HF_TOKEN']}")
    assert failed.returncode == 2
    (left / "failed").write_text(failed.stdout + failed.stderr)

    registered(str(run), uri)
    scored(str(run), 24.0)
    assert read_run_json(str(run))["mlflow_run_id"]

    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text('#!/bin/bash\n[ "$1" = --test-only ] && exit\necho 17\n')
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    words = ["submit", "train", *TINY, f"data.url={small_set}", f"run={left}/runs/job",
             "cluster=slurm", "cluster.gpus_per_node=0", "cluster.code=image"]  # fmt: skip
    done = verb(*words, process=False)
    (left / "submitted").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    assert (left / "runs/job/jobs.json").exists() and (left / "runs/job/job.sbatch").exists()

    assert leaks(left) == []
    (left / "control").write_text(f"x{WORD}x")  # the scan finds what is there
    assert len(leaks(left)) == 1
