"""A run's record in the embedded store: complete, true about its end, and continued on resume."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking.client import experiment_id
from pipeline.tracking.delivery import NOTE
from tests.support.records import client, run_of, steps, tracker

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of runs with an embedded store, and what a killed first use left of another."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / ".mlflow-new.db").write_bytes(b"half a database")
    return folder


@pytest.fixture(scope="module")
def recorded(root):
    """One run with everything a run may hold."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    better = {"val/l1": -1, "val/psnr": 1}
    whole = tracker(root, "whole", direction=better.__getitem__)
    with pytest.MonkeyPatch.context() as patch, whole as run:
        patch.setattr("pipeline.tracking.tracker.SAMPLE_EVERY", 0.2)
        config = {"batch": 16, "model": {"name": "msanet", "fe": [64, 64]}, "note": "x" * 7000}
        run.start(config, {"recipe": "quick"}, ("places2", "s3://bucket/places2", DIGEST))
        run.artifact("config.yaml", b"batch: 16\n")
        for step, psnr in ((16, 20.0), (32, 22.5), (48, 21.0)):
            run.metrics({"g/l1": 1 / step, "val/psnr": psnr, "val/l1": 30 - psnr}, step)
        run.metrics({"g/adv": float("nan"), "g/style": float("inf"), "g/tv": 1.0}, 64)
        pixels = np.zeros((1300, 200, 3), np.uint8)
        pixels[:150] = (255, 128, 0)
        run.image("val/s00/out", pixels, 48)
        threading.Event().wait(0.5)
    return run_of(root, "whole")


def test_parameters_tags_and_the_dataset_are_recorded(recorded):
    assert recorded.data.params["model.name"] == "msanet"
    assert recorded.data.params["model.fe"] == "[64, 64]"
    assert len(recorded.data.params["note"]) == 6000, "as much as MLflow holds"
    assert recorded.data.tags["recipe"] == "quick"
    (used,) = recorded.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("places2", DIGEST[:32])
    assert {t.key: t.value for t in used.tags}["manifest_sha256"] == DIGEST


def test_the_environment_is_recorded(recorded, root):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if commit.returncode == 0:
        assert recorded.data.tags["mlflow.source.git.commit"]
    assert recorded.data.tags["hardware.torch"].startswith("2.")
    assert int(recorded.data.tags["hardware.cores"]) >= 1
    names = [f.path for f in client(root).list_artifacts(recorded.info.run_id, "environment")]
    assert "environment/packages.txt" in names
    where = client(root).download_artifacts(recorded.info.run_id, "environment/packages.txt")
    assert "\ntorch==" in Path(where).read_text()


def test_the_best_value_of_each_validation_metric_is_kept(recorded):
    metrics = recorded.data.metrics
    assert (metrics["val/psnr"], metrics["best/psnr"], metrics["best/step"]) == (21.0, 22.5, 32)
    assert metrics["best/l1"] == 7.5, "lower is better"


def test_non_finite_values_are_counted_not_sent(recorded):
    assert recorded.data.metrics["health/nonfinite"] == 2
    assert recorded.data.metrics["g/tv"] == 1.0
    assert not {"g/adv", "g/style"} & set(recorded.data.metrics)


def test_the_machine_is_sampled_while_training_runs(recorded):
    sampled = {k: v for k, v in recorded.data.metrics.items() if k.startswith("system/0/")}
    assert 0 < sampled["system/0/memory_percent"] < 100
    assert sampled["system/0/process_rss_gb"] > 0.01


def test_images_are_recorded_by_step_with_a_thumbnail(recorded, root):
    from PIL import Image

    paths = [f.path for f in client(root).list_artifacts(recorded.info.run_id, "images")]
    (full,) = [path for path in paths if path.endswith(".png")]
    (thumb,) = [path for path in paths if path.endswith("+compressed.webp")]
    assert full.startswith("images/val~s00~out+step+48+timestamp+")
    where = client(root).download_artifacts(recorded.info.run_id, full)
    assert np.asarray(Image.open(where))[10, 10].tolist() == [255, 128, 0]
    with Image.open(client(root).download_artifacts(recorded.info.run_id, thumb)) as small:
        assert max(small.size) == 1024, "a contact sheet in 256 pixels shows nothing"
    assert recorded.data.tags["mlflow.loggedImages"] == "True"


def test_the_run_json_names_the_record(recorded, root):
    info = read_run_json(str(root / "whole"))
    assert info["mlflow_run_id"] == recorded.info.run_id
    assert info["mlflow_experiment_id"] == recorded.info.experiment_id
    assert info["mlflow_uri"] == f"sqlite:///{root}/mlflow.db"
    assert recorded.info.artifact_uri.startswith(f"{(root / 'mlartifacts').as_uri()}/")


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (None, "FINISHED", "finished"),
        (RuntimeError("out of memory"), "FAILED", "failed"),
        (KeyboardInterrupt(), "KILLED", "killed"),
        (SystemExit(75), "SCHEDULED", "requeued"),
        (SystemExit(1), "FAILED", "failed"),
    ],
)
def test_the_status_tells_how_training_ended(root, error, status, state):
    name = f"ended-{state}-{error!r}"
    run = tracker(root, name)
    if error is None:
        with run:
            run.start({}, {})
    else:
        with pytest.raises(type(error)), run:
            run.start({}, {})
            raise error
    assert run_of(root, name).info.status == status
    assert run_of(root, name).data.tags["job.state"] == state
    why = {"failed": str(error) or None, "killed": "KeyboardInterrupt"}.get(state)
    assert run_of(root, name).data.tags.get("job.error") == why


def test_a_resumed_run_continues_in_the_same_record(root):
    for attempt, (batch, first) in enumerate([(16, 0), (16, 3), (32, 6)], 1):
        with tracker(root, "resumed") as run:
            run.start({"batch": batch, "attempt": "same"}, {"attempt": str(attempt)})
            for step in range(first, first + 3):
                run.metrics({"g/l1": float(step), "val/psnr": 30.0 - attempt}, step)

    runs = client(root).search_runs(
        [run_of(root, "resumed").info.experiment_id], "attributes.run_name = 'resumed'"
    )
    assert len(runs) == 1
    assert sorted(steps(root, "resumed", "g/l1")) == list(range(9))
    data = run_of(root, "resumed").data
    assert data.params["batch"] == "16"
    assert json.loads(data.tags["resume.3.overrides"]) == {"batch": "32"}
    assert "resume.2.overrides" not in data.tags
    assert data.metrics["best/psnr"] == 29.0, "the best of an earlier attempt stays the best"


def test_a_run_made_at_submit_is_the_one_that_is_recorded(root):
    made = client(root).create_run(experiment_id(client(root), f"sqlite:///{root}/mlflow.db",
                                                        "me/submitted"))  # fmt: skip
    update_run_json(str(root / "submitted"), mlflow_run_id=made.info.run_id)
    with tracker(root, "submitted") as run:
        run.start({"a": 1}, {})
    assert read_run_json(str(root / "submitted"))["mlflow_run_id"] == made.info.run_id
    assert client(root).get_run(made.info.run_id).info.status == "FINISHED"


def test_events_that_the_server_will_never_take_are_set_aside(root):
    with tracker(root, "poisoned") as run:
        run.start({}, {})
        run.metrics({"g/l1": 1.0}, 1)
        run.spool.append("metrics", values={"not % allowed": 1.0}, step=2)
        run.spool.append("nonsense", values=1)
        run.metrics({"g/l1": 3.0}, 3)

    assert sorted(steps(root, "poisoned", "g/l1")) == [1, 3]
    rejected = (root / "poisoned/spool/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in rejected] == ["metrics", "nonsense"]
    assert "not % allowed" in json.loads(rejected[0])["reason"]


def test_creation_of_the_store_may_be_killed_and_begun_again(root, recorded):
    assert recorded.info.status == "FINISHED"
    assert not (root / ".mlflow-new.db").exists()


def test_the_description_names_the_run_and_a_users_edit_of_it_is_kept(root):
    for attempt in range(3):
        with tracker(root, "described") as run:
            run.start({}, {NOTE: "see get-artifact?run_uuid={run_id}"})
        recorded = run_of(root, "described")
        expected = "mine" if attempt == 2 else f"see get-artifact?run_uuid={recorded.info.run_id}"
        assert recorded.data.tags[NOTE] == expected
        if attempt == 1:
            client(root).set_tag(recorded.info.run_id, NOTE, "mine")


def test_the_source_is_the_command_of_the_user_also_in_a_worker(monkeypatch):
    program = "from pipeline.tracking.provenance import environment; t, _ = environment(); "
    program += "print(t['mlflow.source.name'], t['mlflow.source.type'])"
    line = [sys.executable, "-c", program, "train", "experiment=compare/pconv"]
    own = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert own.startswith("python -c ") and own.endswith("train experiment=compare/pconv JOB\n")
    monkeypatch.setenv("LACUNA_COMMAND", "python -m pipeline train batch=8")
    worker = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert worker == "python -m pipeline train batch=8 JOB\n"
