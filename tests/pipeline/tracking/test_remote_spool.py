"""The spool of a run that lives in a bucket, on a real S3 server: nodes come and go, `sync` helps.

Each node is a process with a cache of its own. What was recorded is read from MLflow's tables, what
is in the bucket by boto3.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.config.schema import SyncConfig
from pipeline.tracking import sync
from pipeline.tracking.spool import Unsent
from pipeline.tracking.tracker import Tracker
from shards import store
from tests.support.records import Database, until

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.s3, pytest.mark.slow]
DEAD = "http://127.0.0.1:9"
NODE = """
import sys
import numpy as np
from pipeline.common import locks
from pipeline.runs.folder import folder_at, held
from pipeline.tracking.tracker import Tracker
locks.BEAT = 0.2
run = sys.argv[1]
with held(folder_at(run)):
    tracker = Tracker(run, experiment="e", run_name="r", drain={drain})
    tracker.start({{"a": 1}}, {{}})
    for step in range(10):
        tracker.metrics({{"g/l1": step / 7}}, step)
    tracker.image("samples/00/filled", np.zeros((8, 8, 3), np.uint8), 9)
    tracker.publish()
    print("published", flush=True)
    for line in sys.stdin:
        tracker.metrics({{"g/l1": float(line)}}, int(line))
        tracker.publish()
"""


@pytest.fixture
def run(bucket, blank_store, monkeypatch, tmp_path):
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    return store.join(bucket, "run")


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "mlflow.db")


@pytest.fixture
def node(run, tmp_path):
    """Starts a node that trains the run; it dies with the test."""
    started = []

    def start(uri=None, drain=True):
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"node{len(started)}")}
        env |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
        child = subprocess.Popen(
            [sys.executable, "-c", NODE.format(drain=drain), run],
            cwd=ROOT, env=env, stdin=-1, stdout=-1, stderr=-1, text=True,
        )  # fmt: skip
        started.append(child)
        assert child.stdout.readline() == "published\n", child.stderr.read()
        return child

    yield start
    for child in started:
        child.kill()
        print(child.communicate()[1])  # pytest shows it where the test failed


def in_bucket(run):
    """Objects of the spool by name, with their sizes."""
    import boto3

    where = urlsplit(run)
    prefix = f"{where.path.lstrip('/')}/spool/"
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    listed = client.list_objects_v2(Bucket=where.netloc, Prefix=prefix).get("Contents", [])
    return {each["Key"].removeprefix(prefix): each["Size"] for each in listed}


def waiting(run):
    """What is in the bucket and not behind its cursor: segments, images, artifacts."""
    sizes = in_bucket(run)
    cursor = {"segment": 1, "offset": 0}
    if "cursor.json" in sizes:
        cursor = json.loads(store.read(store.join(run, "spool", "cursor.json")))
    sent = f"events-{cursor['segment']:06d}.jsonl"
    return sorted(
        name
        for name, size in sizes.items()
        if name.startswith("files/")
        or (name.startswith("events-") and (name > sent or size > cursor["offset"]))
    )


def kill(child):
    child.send_signal(signal.SIGKILL)
    child.communicate()


def do_sync(run, **options):
    return sync.main(SyncConfig(dir=run, **options))


def test_a_new_node_sends_what_a_killed_one_had_published(run, node, database):
    first = node(uri=DEAD)
    until(lambda: any(name.endswith(".rgb") for name in in_bucket(run)))
    until(lambda: "state.json" in in_bucket(run))
    kill(first)
    assert database.runs("r") == []

    with Tracker(run, experiment="e", run_name="r") as tracker:
        tracker.start({"a": 1}, {})
        tracker.metrics({"g/l1": 0.5}, 10)

    assert [status for _, status in database.runs("r")] == ["FINISHED"]
    assert database.steps("r") == list(range(11))
    assert database.images("r") == {"samples/00/filled": [9]}
    assert waiting(run) == [], "what was sent is no longer in the bucket"


def test_a_node_that_dies_before_its_first_checkpoint_leaves_no_second_run(run, node, database):
    first = node()
    until(lambda: "state.json" in in_bucket(run) and database.runs("r"))
    kill(first)
    (before,) = database.runs("r")
    store.remove(store.join(run, "run.json"))  # as if the creation's answer had come too late

    with Tracker(run, experiment="e", run_name="r") as tracker:
        tracker.start({"a": 1}, {})

    assert database.runs("r") == [(before[0], "FINISHED")]


def test_sync_leaves_a_run_to_the_trainer_that_holds_it_and_takes_over_from_a_dead_one(
    run, node, database
):
    trainer = node(uri=DEAD)
    until(lambda: "state.json" in in_bucket(run))

    assert do_sync(run)["sent"] == 0
    assert database.runs("r") == []
    kept = waiting(run)

    kill(trainer)
    assert waiting(run) == kept, "and took nothing from it"
    until(lambda: do_sync(run)["left"] == 0, 3)
    assert database.steps("r") == list(range(10))
    assert [status for _, status in database.runs("r")] == ["RUNNING"], "it may come back"
    assert waiting(run) == []


def test_sync_drains_from_elsewhere_what_a_living_trainer_only_spools(run, node, database):
    trainer = node(drain=False)
    for step in (10, 11):
        until(lambda: do_sync(run)["sent"] > 0)
        assert database.steps("r") == list(range(step)), "all that was published, once"
        trainer.stdin.write(f"{step}\n")
        trainer.stdin.flush()
    until(lambda: do_sync(run)["left"] == 0 and 11 in database.steps("r"))
    kill(trainer)

    assert database.steps("r") == list(range(12))
    assert database.images("r") == {"samples/00/filled": [9]}
    with Tracker(run, experiment="e", run_name="r", drain=False) as tracker:
        tracker.start({"a": 1}, {})
        tracker.metrics({"g/l1": 0.5}, 12)
    assert do_sync(store.join(run.rpartition("/")[0]))["left"] == 0, "a folder of runs"
    assert [status for _, status in database.runs("r")] == ["FINISHED"]
    assert database.steps("r") == list(range(13))
    assert waiting(run) == []


def test_a_bucket_that_refuses_the_spool_does_not_stop_training(
    faults, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = f"{faults.server.bucket()}/run"
    faults.set({"act": "status", "status": 403, "code": "AccessDenied", "method": "PUT",
                "path": "/spool/"})  # fmt: skip
    with Tracker(run, experiment="e", run_name="r") as tracker:
        tracker.start({}, {})
        tracker.metrics({"g/l1": 1.0}, 1)
        tracker.publish()

    assert Database(tmp_path / "mlflow.db").steps("r") == [1]
    assert "the spool could not be copied to s3://" in capfd.readouterr().err
    assert Unsent(tracker.folder).count() == 0
