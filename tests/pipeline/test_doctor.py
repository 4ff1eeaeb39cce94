"""`doctor` on this machine and as a job's launchers."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.common.errors import ConfigError
from pipeline.launch.topology import free_port
from pipeline.runs.folder import folder_at, held

ROOT = Path(__file__).resolve().parents[2]
ALONE = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "MLFLOW_TRACKING_URI": ""}


def checks(done):
    results = json.loads(done.stdout.splitlines()[-1])["checks"]
    return {check["name"]: check for check in results}


def test_each_check_is_one_line_with_its_hint(verb, tmp_path):
    done = verb("doctor", "--json", env={**ALONE, "HOME": str(tmp_path), "XDG_CACHE_HOME": ""})
    found = checks(done)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == len(found)
    assert {"python", "torch", "devices", "precision", "disk", "mlflow", "scheduler"} <= set(found)
    assert found["weights"]["state"] == "note" and "fetch vgg16" in found["weights"]["hint"]
    assert all(check["mend"] == check["hint"] for check in found.values())


def test_a_bad_check_ends_with_status_1_after_all_were_printed(verb, tmp_path):
    env = {**ALONE, "HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "only-one"}
    done = verb("doctor", env=env)
    assert done.returncode == 1
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("bad"))
    assert "AWS_SECRET_ACCESS_KEY" in line and "only-one" not in done.stderr


@pytest.mark.slow
@pytest.mark.s3
def test_a_bucket_is_tried_and_left_as_it_was(verb, bucket, tmp_path):
    from shards import store

    found = checks(verb("doctor", f"url={bucket}/prefix", "--json"))
    assert found["storage"]["state"] == "ok" and store.names(f"{bucket}/prefix") == []
    done = verb("doctor", "url=s3://no-such-bucket-here")
    assert done.returncode == 1 and "bad   storage" in done.stderr


@pytest.mark.slow
@pytest.mark.dist
def test_two_nodes_of_a_job_exchange_numbers(tmp_path):
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "doctor", "--json"],
            cwd=ROOT,
            env={
                **os.environ,
                "PET_NNODES": "2",
                "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": "1",
                "PET_MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, node in enumerate(nodes):
        out, err = node.communicate(timeout=120)
        assert node.returncode == 0, err
        assert f"rank {rank} of 2" in err
        assert json.loads(out)["checks"][-1]["found"] == "2 nodes x 1 processes agree"


# Row 57
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_named_by_doctor_and_by_training(monkeypatch, tmp_path, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    assert doctor.disk().state != "bad" and not list(tmp_path.iterdir())
    monkeypatch.setattr(fcntl, "flock", refused)
    assert doctor.disk().state == "bad"
    reason = f"without file locks .flock: {os.strerror(number)}.: give a folder on another disk"
    with pytest.raises(ConfigError, match=reason), held(folder_at(str(tmp_path / "run"))):
        pass
