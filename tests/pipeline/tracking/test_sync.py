"""`sync`: what a run could not send, or only spooled, arrives once and whole."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.config.schema import SyncConfig
from pipeline.tracking import errors, sync
from pipeline.tracking.spool import Spool, Unsent
from tests.conftest import TINY
from tests.support.records import Database, client, logged_steps, run_of, steps, tracker, until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_after_a_kill_sync_sends_every_point(root):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline.tracking.tracker import Tracker
run = Tracker({str(root / "killed")!r}, experiment="me/recipe", run_name="killed", drain=False)
run.start({{"a": 1}}, {{}})
for step in range(600):
    run.metrics({{"g/l1": step / 7}}, step)
assert "mlflow" not in sys.modules, "a trainer that only spools does not even import it"
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    result = sync.main(SyncConfig(dir=str(root / "killed")))

    assert sorted(steps(root, "killed", "g/l1")) == list(range(600))
    assert (result["left"], result["rejected"]) == (0, 0)
    assert run_of(root, "killed").info.status == "RUNNING", "it may come back"


def test_sending_everything_twice_adds_nothing(root):
    with tracker(root, "twice") as run:
        run.start({"a": 1}, {})
        for step in range(10):
            run.metrics({"g/l1": 0.5}, step)
        run.image("val/s00/out", np.zeros((8, 8, 3), np.uint8), 1)
    folder = root / "twice" / "spool"
    (folder / "cursor.json").unlink()

    sync.main(SyncConfig(dir=str(root / "twice")))

    assert sorted(steps(root, "twice", "g/l1")) == list(range(10))
    runs = client(root).search_runs(
        [run_of(root, "twice").info.experiment_id], "attributes.run_name = 'twice'"
    )
    assert len(runs) == 1


def test_a_deleted_run_keeps_its_events_and_is_reported(root, capfd):
    with tracker(root, "deleted") as run:
        run.start({}, {})
    client(root).delete_run(run_of(root, "deleted").info.run_id)

    with tracker(root, "deleted") as run:
        run.start({}, {})
        run.metrics({"g/l1": 1.0}, 1)

    assert "was deleted" in capfd.readouterr().err
    assert not (root / "deleted/spool/rejected.jsonl").exists()
    assert Unsent(root / "deleted" / "spool").count() > 0
    with pytest.raises(errors.ServerError, match="was deleted"):
        sync.main(SyncConfig(dir=str(root / "deleted")))


def test_sync_names_a_folder_without_runs(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        sync.main(SyncConfig(dir=str(tmp_path)))


def test_sync_watch_sends_what_a_trainer_only_spools_and_ends_on_sigterm(root):
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "sync", str(root / "watched"), "watch=true", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with tracker(root, "watched", drain=False) as run:
            run.start({}, {})
            for step in range(50):
                run.metrics({"g/l1": float(step)}, step)
        waiting = Spool(root / "watched" / "spool")  # a later attempt, a new segment
        waiting.append("metrics", values={"g/l1": 50.0}, step=50)
        waiting.close()
        for _ in range(600):
            if Unsent(root / "watched" / "spool").count() == 0:
                break
            threading.Event().wait(0.1)
    finally:
        watcher.send_signal(signal.SIGTERM)
        out, _ = watcher.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["left"] == 0
    assert sorted(steps(root, "watched", "g/l1")) == list(range(51))
    assert run_of(root, "watched").info.status == "FINISHED"


def training(small_set, run, *words, uri):
    """`train` by one process, in the background."""
    kept = [word for word in TINY if not word.startswith("tracking.")]
    command = [sys.executable, "-m", "pipeline", "train", *kept, f"data.url={small_set}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri}
    return subprocess.Popen(
        [*command, f"run={run}", "processes=1", "validate.pairs=1", *words],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )


def lock_holders(path):
    """Process ids that hold a POSIX lock on a file, as the kernel tells."""
    inode = str(path.stat().st_ino)
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(line[4]) for line in lines if line[1] == "POSIX" and line[5].endswith(f":{inode}")]


@pytest.mark.slow
@pytest.mark.dist
def test_beside_a_living_trainer_sync_sends_nothing_and_after_its_death_everything(
    small_set, verb, tmp_path
):
    """The trainer's own server is dead, sync's is not: what arrives was sent by sync."""
    run, database = tmp_path / "run", Database(tmp_path / "mlflow.db")
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{database.path}"}
    trainer = training(small_set, run, "max_images=80000", uri="http://127.0.0.1:9")
    try:
        until(lambda: (run / "steps.jsonl").exists() and len(logged_steps(run)) > 3, 120)
        (rank_0,) = psutil.Process(trainer.pid).children()
        assert lock_holders(run / "spool" / "drain.lock") == [rank_0.pid]
        done = verb("sync", run, "--json", env=uri)
        result = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 0 and result["sent"] == 0 < result["left"], done.stderr
        assert "another process is sending this run's events" in done.stderr
        assert database.runs("run") == []
    finally:
        trainer.kill()  # and with it its worker
        trainer.communicate()
    psutil.wait_procs([rank_0], timeout=30)

    done = verb("sync", run, "--json", env=uri)
    assert json.loads(done.stdout.splitlines()[-1])["left"] == 0, done.stderr
    logged = logged_steps(run)
    assert database.steps("run", "g/l2") in (logged, logged[:-1]), "killed between file and spool"


@pytest.mark.slow
@pytest.mark.dist
def test_sync_watch_on_a_folder_drains_a_trainer_that_has_no_route(small_set, tmp_path):
    run, database = tmp_path / "runs" / "run", Database(tmp_path / "mlflow.db")
    (tmp_path / "runs").mkdir()
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "sync", "--watch", str(tmp_path / "runs"), "--json"],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database.path}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    words = ("max_images=80000", "tracking.drain=false")
    trainer = training(small_set, run, *words, uri="http://127.0.0.1:9")
    try:
        until(lambda: trainer.poll() is not None or database.steps("run", "g/l2"), 120)
        assert trainer.poll() is None, "it drains while training continues"
        trainer.send_signal(signal.SIGTERM)
        said = trainer.communicate(timeout=120)[1]
        assert trainer.returncode == 75, said
        assert "does not answer" not in said, "who only spools asks nobody"
        until(lambda: [status for _, status in database.runs("run")] == ["SCHEDULED"])
    finally:
        trainer.kill()
        watcher.send_signal(signal.SIGTERM)
        out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0 and json.loads(out.splitlines()[-1])["left"] == 0
    assert database.tags("run")["job.state"] == "requeued"
    assert database.steps("run", "g/l2") == logged_steps(run)
