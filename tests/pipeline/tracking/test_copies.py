"""A run that was copied gets an MLflow run of its own; one that was moved keeps the one it has."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.config.compose import compose
from pipeline.config.schema import RunsConfig
from pipeline.runs.run_json import change_run_json, place_of, read_run_json, update_run_json
from pipeline.tracking import lifecycle
from pipeline.tracking.close import dead
from shards import store
from tests.support.records import Database, client, run_of, steps, tracker


def forked(run):
    change_run_json(run, lambda known: lifecycle.fork(run, known))


def trained(root, name, *numbers, **options):
    """What `train` does for the record of a run: its place, then its events."""
    run = str(root / name)
    forked(run)
    update_run_json(run, url=place_of(run))
    with tracker(root, name, **options) as tracking:
        tracking.start({}, {})
        for number in numbers:
            tracking.metrics({"g/l1": float(number)}, number)


def copied(root):
    shutil.copytree(root / "a", root / "b", symlinks=True)


def copied_elsewhere(root):
    shutil.copytree(root / "a", root / "group" / "b")
    os.symlink(root / "group" / "b", root / "b")


def copied_by_a_relative_name(root):
    os.chdir(root)
    update_run_json("a", url="a")  # as versions before this rule wrote it
    copied(root)


def moved(root):
    (root / "a").rename(root / "b")


def moved_and_another_run_is_at_its_old_place(root):
    moved(root)
    trained(root, "a", 7)


def linked(root):
    os.symlink("a", root / "b")


def copied_and_the_first_removed(root):
    copied(root)
    shutil.rmtree(root / "a")


# Row 46
@pytest.mark.parametrize("change", [copied, copied_elsewhere, copied_by_a_relative_name])
def test_a_copy_continues_in_a_run_of_its_own_below_the_first(root, capsys, change):
    trained(root, "a", 1, 2)
    first = read_run_json(str(root / "a"))["mlflow_run_id"]
    change(root)
    trained(root, "b", 3)
    trained(root, "a", 4)
    trained(root, "b", 5)
    second = run_of(root, "b")
    assert second.info.run_id != first and second.data.tags["mlflow.parentRunId"] == first
    assert run_of(root, "a").info.run_id == first
    assert (steps(root, "a"), steps(root, "b")) == ([1, 2, 4], [3, 5])
    assert capsys.readouterr().err.count("is a copy of") == 1


@pytest.mark.parametrize(
    "change",
    [moved, moved_and_another_run_is_at_its_old_place, linked, copied_and_the_first_removed],
)
def test_a_run_that_moved_or_is_reached_by_another_name_keeps_its_record(root, change):
    trained(root, "a", 1, 2)
    first = read_run_json(str(root / "a"))["mlflow_run_id"]
    change(root)
    trained(root, "b", 3)
    assert run_of(root, "b").info.run_id == first
    assert len(Database(root / "mlflow.db").rows("select 1 from metrics where run_uuid = ?"
                                                 " and key = 'g/l1'", first)) == 3  # fmt: skip


def test_a_run_copied_before_a_server_answered_sends_its_events_once(root):
    trained(root, "a", 1, drain=False)
    copied(root)
    trained(root, "b", 2)
    trained(root, "a", 3)
    assert (steps(root, "a"), steps(root, "b")) == ([1, 3], [2])


def test_a_copy_in_a_bucket_is_noticed_too(root, bucket):  # noqa: F811
    trained(root, "a", 1)
    first, copy = read_run_json(str(root / "a"))["mlflow_run_id"], f"{bucket}/b"
    for name in ("run.json", "spool/state.json"):
        store.write(store.join(copy, name), (root / "a" / name).read_bytes())
    assert lifecycle.original(copy, read_run_json(copy)) == str(root / "a")
    forked(copy)
    assert read_run_json(copy)["mlflow_parent"] == first
    assert store.names(store.join(copy, "spool")) == []
    assert lifecycle.original(copy, read_run_json(copy)) is None


# Row 46
def test_a_copy_does_not_end_the_run_that_it_was_copied_from(root):
    """Neither by a failure before its training began, nor by `runs close`."""
    run = tracker(root, "a")
    update_run_json(run.run, url=place_of(run.run))
    with run:
        run.start({}, {})
        run.metrics({"g/l1": 1.0}, 1)
        run.spool.sync()
        while "mlflow_run_id" not in read_run_json(run.run):
            pass
        copied(root)
        lifecycle.ended(str(root / "b"), "no such dataset", True)
        assert run_of(root, "a").info.status == "RUNNING"
        with open(root / "a" / ".lock", "w") as handle:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
            update_run_json(str(root / "b"), launcher={"host": os.uname().nodename, "pid": 1})
            assert dead(client(root), RunsConfig(root=str(root))) == []


def announced(run, **options):
    words = [f"{key}={value}" for key, value in options.items()]
    config = compose("train", ["experiment=quickstart", f"run={run}", *words]).config
    return lifecycle.announce([config], [str(run)], "job")[0].mlflow_run


# Row 46
def test_submit_gives_a_copy_its_own_run(root):
    trained(root, "a", 1)
    first = read_run_json(str(root / "a"))["mlflow_run_id"]
    copied(root)
    made = announced(root / "b")
    assert made != first
    assert client(root).get_run(made).data.tags["mlflow.parentRunId"] == first
    assert run_of(root, "a").info.status == "FINISHED"


# Row 66
@pytest.mark.parametrize("start", ["train", "submit"])
def test_the_recorded_experiment_counts_whatever_its_name(root, start):
    """It was renamed in MLflow's page; another of the old name was made and deleted."""
    trained(root, "a", 1)
    first = run_of(root, "a").info
    client(root).rename_experiment(first.experiment_id, "renamed")
    client(root).delete_experiment(client(root).create_experiment("me/recipe"))
    if start == "submit":
        assert announced(root / "a", **{"tracking.experiment": "me/recipe"}) == first.run_id
    trained(root, "a", 2)
    assert steps(root, "a") == [1, 2]
    assert run_of(root, "a").info.experiment_id == first.experiment_id
    assert run_of(root, "a").info.status == "FINISHED"
    assert not Path(root / "a" / "spool" / "rejected.jsonl").exists()


def test_an_announcement_reads_the_record_of_each_run_once(root, monkeypatch):
    read, urls = store.read, []
    monkeypatch.setattr(store, "read", lambda url: urls.append(url) or read(url))
    config = compose("train", ["data.url=s"]).config
    uri = f"sqlite:///{root}/server.db"
    made = lifecycle.announce([config, config], [str(root / "a"), str(root / "b")], "sweep", uri)
    assert [each.run for each in made] == [None, str(root / "a"), str(root / "b")]
    read_records = [url for url in urls if url.endswith("run.json")]
    # An embedded store looks at the first run once more, before it is created.
    assert sorted(read_records) == [f"{root}/a/run.json"] * 2 + [f"{root}/b/run.json"]
