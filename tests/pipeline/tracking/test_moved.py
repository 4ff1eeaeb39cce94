"""The embedded store of a run whose folder moved is found, and never made a second time."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils

from pipeline.config.schema import SyncConfig
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import sync
from pipeline.tracking.errors import ServerError
from pipeline.tracking.tracker import Tracker
from tests.support.records import Database, client, tracker


def continued(run, number):
    """What `train run=` does: without the root that the run was started in."""
    with Tracker(run, experiment="me/recipe", run_name="run") as tracking:
        tracking.start({}, {})
        tracking.metrics({"g/l1": float(number)}, number)


@pytest.fixture
def old(root):
    """A folder of runs with one run and its store, below the working directory."""
    with tracker(root, "run") as tracking:
        tracking.start({}, {})
        tracking.metrics({"g/l1": 1.0}, 1)
    return root


def whole(old, blank):
    old.rename(old.parent / "new")
    return old.parent / "new" / "run", old.parent / "new"


def whole_and_another_store_is_made_at_the_old_place(old, blank):
    run, folder = whole(old, blank)
    old.mkdir()
    shutil.copy(blank, old / "mlflow.db")
    return run, folder


def below_another_store(old, blank):
    top = old.parent / "top"
    top.mkdir()
    shutil.copy(blank, top / "mlflow.db")
    old.rename(top / "old")
    return top / "old" / "run", top / "old"


def below_a_nearer_store(old, blank):
    run, folder = whole(old, blank)
    (folder / "group").mkdir()
    shutil.copy(blank, folder / "group" / "mlflow.db")
    return run.rename(folder / "group" / "run"), folder


def the_run_alone(old, blank):
    return (old / "run").rename(old.parent / "run"), old


# Row 55
@pytest.mark.parametrize(
    "move",
    [
        whole,
        whole_and_another_store_is_made_at_the_old_place,
        below_another_store,
        below_a_nearer_store,
        the_run_alone,
    ],
)
def test_a_moved_run_continues_in_the_store_that_holds_it(old, blank_store, move, capfd):
    before = read_run_json(str(old / "run"))["mlflow_run_id"]
    run, holder = move(old, blank_store)
    stores = set(old.parent.rglob("mlflow.db"))
    continued(run, 2)
    assert Database(holder / "mlflow.db").steps("run") == [1, 2]
    assert read_run_json(str(run))["mlflow_run_id"] == before
    assert set(old.parent.rglob("mlflow.db")) == stores
    assert "deleted" not in capfd.readouterr().err


@pytest.fixture
def with_artifacts(old):
    """The same, with an artifact."""
    with tracker(old, "run") as tracking:
        tracking.start({}, {})
        tracking.artifact("first.txt", b"1")
    return old


# Row 55
@pytest.mark.parametrize(
    "move",
    [whole, whole_and_another_store_is_made_at_the_old_place, below_another_store],
)
def test_artifacts_of_a_moved_store_are_read_and_written_next_to_it(
    with_artifacts, blank_store, move
):
    old = with_artifacts
    run, holder = move(old, blank_store)
    utils._artifact_repos_cache.clear()  # of the process before the move
    with Tracker(run, root=str(holder), experiment="me/recipe", run_name="run") as tracking:
        tracking.start({}, {})
        tracking.artifact("second.txt", b"2")
    assert not list(old.rglob("mlartifacts"))
    mlflow, run_id = client(holder), read_run_json(str(run))["mlflow_run_id"]
    for name, text in (("first.txt", "1"), ("second.txt", "2")):
        assert Path(mlflow.download_artifacts(run_id, name)).read_text() == text
    assert len(list(holder.glob("mlartifacts/*/artifacts/*.txt"))) == 2


@pytest.mark.parametrize("copied", [("mlflow.db", "mlartifacts"), ("mlflow.db",)])
def test_artifacts_of_a_copied_store_are_the_copy_if_there_is_one(with_artifacts, copied):
    old, new = with_artifacts, with_artifacts.parent / "100%_copied"
    new.mkdir()
    shutil.copy(old / "mlflow.db", new)
    if "mlartifacts" in copied:
        shutil.copytree(old / "mlartifacts", new / "mlartifacts")
    client(new)
    ((uri,),) = Database(new / "mlflow.db").rows("select artifact_uri from runs")
    holder = new if "mlartifacts" in copied else old
    assert uri.startswith((holder / "mlartifacts").as_uri() + "/")


# Row 55
def test_without_its_store_a_run_keeps_its_events_and_makes_no_other(
    old, tmp_path, capfd, monkeypatch
):
    (old / "mlflow.db").rename(tmp_path / "aside.db")
    monkeypatch.setattr(Tracker.finish, "__defaults__", (5.0,))  # seconds, not a minute
    continued(old / "run", 2)
    run = read_run_json(str(old / "run"))["mlflow_run_id"]
    words = f"no MLflow data at sqlite:///{old}/mlflow.db: it held MLflow run {run}"
    assert words in capfd.readouterr().err
    with pytest.raises(ServerError, match="no MLflow data at"):
        sync.main(SyncConfig(dir=str(old / "run")))
    assert not (old / "mlflow.db").exists()
    (tmp_path / "aside.db").rename(old / "mlflow.db")
    sync.main(SyncConfig(dir=str(old / "run")))
    assert Database(old / "mlflow.db").steps("run") == [1, 2]
