"""The documented server: PostgreSQL, a bucket, accounts, started by `jobs/deploy/server/start`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison import runs
from pipeline.config.schema import PromoteConfig, RollbackConfig, RunsConfig
from pipeline.registry import promote
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import errors, model_versions
from pipeline.tracking.client import connect, experiment_id, ping
from pipeline.tracking.tracker import Tracker
from tests.support.mlflow_server import Postgres, Process, free_port, postgres_bin
from tests.support.s3 import moto_server
from tests.support.trained import finished_run, registered, scored

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = {
    "admin": "the-admin-password",
    "ann": "trainer-password",
    "release": "promoter-password",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.s3,
    pytest.mark.skipif(postgres_bin() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def production(tmp_path_factory):
    """The server's URL, with accounts `ann` (trainer) and `release` (promoter) on it."""
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    folder = tmp_path_factory.mktemp("production")
    (folder / "postgres").mkdir()
    postgres, port = Postgres(folder / "postgres"), free_port()
    with moto_server() as moto:
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        s3 = boto3.client("s3", endpoint_url=moto.endpoint, region_name="us-east-1", **keys)
        s3.create_bucket(Bucket="lacuna")
        backend = postgres.start()
        auth = postgres.create("mlflow_auth")
        env = {
            "PYTHON": sys.executable,
            "BACKEND_URI": backend,
            "AUTH_URI": auth,
            "ARTIFACTS": "s3://lacuna/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": moto.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD["admin"],
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WORKERS": "1",
        }
        start = str(ROOT / "jobs" / "deploy" / "server" / "start")
        running = Process([start], folder / "server.log", env)
        url = f"http://127.0.0.1:{port}"
        try:
            running.wait_for(f"{url}/health", 240)
            account(url, "trainer", "ann", "experiment=ann/places2", "model=inpaint-msanet")
            account(url, "promoter", "release", "model=inpaint")
            yield url, s3
        finally:
            running.kill()
            postgres.stop()


def account(url, role, name, *grants):
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD["admin"],
        "ACCOUNT_PASSWORD": PASSWORD[name],
    }
    script = str(ROOT / "jobs" / "deploy" / "server" / "accounts.py")
    for _ in range(2):  # a second time changes nothing
        done = subprocess.run(
            [sys.executable, script, role, name, *grants], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= len(grants)


@pytest.fixture
def as_user(production, monkeypatch, tmp_path):
    url, _ = production
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)  # clients need none

    def become(name, password=None):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or PASSWORD[name])
        return url

    return become


def test_a_trainer_records_a_run_and_its_files_reach_the_bucket(as_user, production, tmp_path):
    url = as_user("ann")
    with Tracker(tmp_path / "run", experiment="ann/places2", run_name="whole") as run:
        run.start({"batch": 16}, {}, ("places2", "s3://bucket/places2", "ab" * 32))
        for step in range(100):
            run.metrics({"g/l1": step / 7, "val/psnr": 20 + step / 10}, step)
        run.image("val/s00/out", np.zeros((32, 32, 3), np.uint8), 99)

    info = read_run_json(run.run)
    assert info["mlflow_uri"] == url
    client = connect(url)
    recorded = client.get_run(info["mlflow_run_id"])
    assert recorded.info.status == "FINISHED"
    history = client.get_metric_history(info["mlflow_run_id"], "g/l1")
    assert sorted(m.step for m in history) == list(range(100))
    _, s3 = production
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="lacuna")["Contents"]]
    assert any(key.endswith(".png") and info["mlflow_run_id"] in key for key in keys)
    (row,) = runs.main(RunsConfig(filter="attributes.run_name = 'whole'"))["runs"]
    assert (row["state"], row["images_seen"], row["psnr"]) == ("finished", 99, 29.9)


def test_the_trainers_account_registers_but_cannot_touch_production(as_user, tmp_path):
    url = as_user("ann")
    client = connect(url)
    experiment_id(client, url, "me/recipe")
    run = finished_run(tmp_path / "candidate", seed=1, uri=url)
    version = registered(run, url)
    scored(run, 20.0)
    assert (version.name, str(version.version)) == ("inpaint-msanet", "1")

    with pytest.raises(errors.ServerError, match="does not let ann do this.*MANAGE"):
        promote.main(PromoteConfig(model="inpaint-msanet", run=run, into="inpaint"))
    from mlflow.exceptions import MlflowException

    for forbidden in (
        lambda: client.set_registered_model_alias("inpaint", "champion", "1"),
        lambda: client.set_registered_model_tag("inpaint", "gate.pinned", "{}"),
        lambda: client.create_model_version("inpaint", version.source),
        lambda: client.delete_registered_model("inpaint"),
    ):
        with pytest.raises(MlflowException, match="403|PERMISSION_DENIED|denied"):
            forbidden()
    as_user("admin")
    assert model_versions.versions(connect(url), "inpaint") == []

    as_user("release")
    result = promote.main(PromoteConfig(model="inpaint-msanet", run=run, into="inpaint"))
    assert (result["name"], result["version"]) == ("inpaint", 1)
    assert promote.main(PromoteConfig(model="inpaint", verify=True))["faults"] == []

    as_user("ann")
    better = finished_run(tmp_path / "better", seed=2, uri=url)
    registered(better, url)
    scored(better, 21.0)
    as_user("release")
    assert promote.main(PromoteConfig(model="inpaint-msanet", run=better, into="inpaint"))
    assert promote.main(RollbackConfig(model="inpaint"))["version"] == 3
    champion = model_versions.find_version(connect(url), "models:/inpaint@champion")
    assert champion.tags["lacuna.run"] == run

    worse = finished_run(tmp_path / "worse", seed=3)
    as_user("ann")
    registered(worse, url)
    scored(worse, 15.0)
    as_user("release")
    with pytest.raises(promote.Rejected, match="psnr is worse"):
        promote.main(PromoteConfig(model="inpaint-msanet", run=worse, into="inpaint"))


def test_a_wrong_password_and_a_foreign_experiment_are_one_line_each(as_user, tmp_path, capfd):
    url = as_user("ann", "not-the-password")
    with pytest.raises(errors.ServerError, match="refused ann: set MLFLOW_TRACKING_USERNAME"):
        ping(connect(url), url)

    as_user("admin")
    experiment_id(connect(url), url, "somebody/else")
    as_user("ann")
    run = Tracker(tmp_path / "run", experiment="somebody/else", run_name="intruder")
    run.start({}, {})
    run.metrics({"g/l1": 1.0}, 1)
    run.finish("FINISHED", wait=3)
    output = capfd.readouterr().err
    assert "does not let ann do this: an administrator grants EDIT on the experiment" in output
    assert "python -m pipeline sync" in output
