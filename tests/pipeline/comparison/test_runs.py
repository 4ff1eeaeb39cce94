"""`runs`: what there is, what is dead, what takes space, and what may be deleted."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.comparison import runs
from pipeline.config.commands import COMMANDS
from pipeline.config.schema import RunsConfig
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json
from pipeline.tracking.client import connect, experiment_id, tracking_uri
from pipeline.tracking.delivery import HEARTBEAT
from pipeline.training import checkpointing
from tests.support.trained import finished_run

DAY = 86400


def uri(root):
    return tracking_uri(str(root))


def logged(root, name, status="FINISHED", heartbeat_age=0.0, **metrics):
    client = connect(uri(root))
    experiment = experiment_id(client, uri(root), "me/recipe")
    run = client.create_run(experiment, run_name=name).info.run_id
    for key, value in metrics.items():
        client.log_metric(run, key.replace("__", "/"), value)
    client.set_tag(run, HEARTBEAT, str(int((time.time() - heartbeat_age) * 1000)))
    if status != "RUNNING":
        client.set_terminated(run, status)
    return run


def do(root, action="list", **options):
    config = RunsConfig(action=action, root=str(root), **options)
    COMMANDS["runs"].check(config)
    return runs.main(config)


def test_runs_are_listed_best_first_in_the_metric_s_own_direction(root):
    for name, psnr, loss in (("low", 20.0, 3.0), ("high", 24.0, 1.0), ("middle", 22.0, 2.0)):
        logged(root, name, val__psnr=psnr, val__l1=loss)
    logged(root, "without")

    assert [r["name"] for r in do(root, best="val/psnr")["runs"]] == ["high", "middle", "low"]
    assert [r["name"] for r in do(root, best="val/l1")["runs"]] == ["high", "middle", "low"]
    assert len(do(root)["runs"]) == 4
    best = do(root, filter="metrics.`val/psnr` > 21", best="val/psnr", limit=1)["runs"]
    assert [r["name"] for r in best] == ["high"]
    assert f"/runs/{best[0]['run_id']}?workflowType=machine_learning" in best[0]["link"]
    lines = runs.show(do(root, best="val/psnr")).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["high", "middle", "low"]
    assert lines[1].endswith(best[0]["link"]) and "mlflow server --backend" in lines[-2]
    page = "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
    assert lines[-1].endswith(page), "MLflow's start page is that of language models, without ours"


# Row 51
def test_runs_of_the_oldest_of_1006_experiments_are_listed_and_closed(root):
    """A search of MLflow returns one page, the newest 1,000 experiments."""
    dead = logged(root, "dead", "RUNNING", heartbeat_age=2 * DAY, val__psnr=20.0)
    later = int(time.time() * 1000) + 1000
    rows = [(1000 + n, f"younger-{n}", "active", later + n, later + n) for n in range(1005)]
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.executemany(
            "insert into experiments (experiment_id, name, lifecycle_stage, creation_time,"
            " last_update_time, workspace) values (?, ?, ?, ?, ?, 'default')", rows)  # fmt: skip

    for options in ({}, {"best": "val/psnr"}):
        assert [r["name"] for r in do(root, **options)["runs"]] == ["dead"]
    assert [r["run_id"] for r in do(root, "close")["closed"]] == [dead]


def test_a_metric_that_no_run_has_is_answered_with_the_nearest(root):
    logged(root, "one", val__psnr=20.0)
    with pytest.raises(ValueError, match="no run at sqlite:.* the metric 'val/pnsr'.*val/psnr"):
        do(root, best="val/pnsr")
    with pytest.raises(
        ValueError,
        match="filter=psnr is large is not a valid MLflow filter .*: expected, for example",
    ) as caught:
        do(root, filter="psnr is large")
    assert "\n" not in str(caught.value)


def test_the_state_of_a_silent_run_is_not_called_running(root):
    logged(root, "alive", "RUNNING")
    logged(root, "silent", "RUNNING", heartbeat_age=7200)
    waiting = logged(root, "waiting", "RUNNING", heartbeat_age=7200)
    connect(uri(root)).set_tag(waiting, "job.state", "requeued")
    connect(uri(root)).update_run(waiting, status="SCHEDULED")
    states = {r["name"]: r["state"] for r in do(root)["runs"]}
    assert states == {"alive": "running", "silent": "silent 2.0 h", "waiting": "requeued"}


def test_close_ends_dead_runs_and_no_living_one(root):
    alive = logged(root, "alive", "RUNNING")
    dead = logged(root, "dead", "RUNNING", heartbeat_age=2 * DAY)
    assert [r["run_id"] for r in do(root, "close")["closed"]] == [dead]
    client = connect(uri(root))
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(alive).info.status == "RUNNING"


def several(root, name="run", pinned=()):
    """A run with checkpoints at 1000, 2000, 3000 and 4000 images; 2000 is the best."""
    run = finished_run(root / name)
    first = checkpoints.find(run)
    saver = checkpointing.Saver(folder_at(run), 10)
    for images, psnr in ((2000, 25.0), (3000, 22.0), (4000, 23.0)):
        facts = {"model": first.state["model"], "dataset": "ab" * 32, "metrics": {"val/psnr": psnr}}
        saver.save(images, {"generator": first.read("generator")}, facts)
    saver.close()
    for images in pinned:
        checkpoints.pin(run, images)
    return run


def age(run, seconds):
    then = time.time() - seconds
    for folder, _, names in os.walk(run):
        for name in (*names, "."):
            os.utime(os.path.join(folder, name), (then, then))


def left(run):
    return [c.images_seen for c in checkpoints.list_checkpoints(run)]


def test_prune_says_what_it_would_delete_and_deletes_only_with_delete_true(root):
    run = several(root)
    age(run, 40 * DAY)
    result = do(root, "prune")
    assert [r["checkpoint"][-4:] for r in result["would_delete"]] == ["1000", "3000"]
    assert left(run) == [1000, 2000, 3000, 4000]

    assert len(do(root, "prune", delete=True)["deleted"]) == 2
    assert left(run) == [2000, 4000], "the best and the last stay"


def test_prune_refuses_what_the_registry_or_an_evaluation_names(root):
    run = several(root, pinned=(1000,))
    assert read_run_json(run)["pinned"] == [1000]
    age(run, 40 * DAY)
    result = do(root, "prune", delete=True)
    assert [r["checkpoint"][-4:] for r in result["refused"]] == ["1000"]
    assert left(run) == [1000, 2000, 4000]


def test_prune_deletes_nothing_where_a_checkpoint_to_be_kept_is_corrupt(root):
    run = several(root)
    path = Path(checkpoints.find(run).url, "generator.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    age(run, 40 * DAY)
    result = do(root, "prune", delete=True)
    assert result["deleted"] == [] and len(result["refused"]) == 2
    assert "000000004000, which would be kept, is corrupt" in result["refused"][0]["reason"]
    assert left(run) == [1000, 2000, 3000, 4000]


def test_prune_leaves_young_runs_alone_and_rejects_short_ages(root):
    run = several(root)
    assert do(root, "prune", delete=True) == {"deleted": [], "refused": []}
    with pytest.raises(ValueError, match="less than 24h"):
        do(root, "prune", older_than="1h")
    with pytest.raises(ValueError, match="keep=none is not allowed"):
        do(root, "prune", keep="none")
    assert len(left(run)) == 4


def test_du_lists_the_largest_run_first(root):
    several(root, "large")
    finished_run(root / "small")
    rows = do(root, "du")["runs"]
    assert [os.path.basename(r["run"]) for r in rows] == ["large", "small"]
    assert rows[0]["checkpoints_mb"] > rows[1]["checkpoints_mb"] > 0


def test_a_root_that_is_no_folder_is_named(tmp_path):
    for action in ("du", "prune"):
        with pytest.raises(ValueError, match="is not a local folder: give "):
            do(tmp_path / "nowhere", action)
