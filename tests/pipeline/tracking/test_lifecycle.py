"""Scores of a run on their way: its folder, its MLflow run, a comparison on another machine."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models import GENERATORS
from pipeline.comparison import collect, compare
from pipeline.config.compose import compose
from pipeline.config.methods.msanet import MsanetModel
from pipeline.evaluation import evaluate
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import client
from pipeline.tracking.lifecycle import send
from pipeline.tracking.spool import Unsent
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpointing import Saver
from tests.support.pairs import SIZE, crops, image_set, mask_set

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    urls = image_set(tmp_path / "images", crops()), mask_set(tmp_path / "masks")
    return [f"data.url={urls[0]}", f"masks.url={urls[1]}", f"protocol.size={SIZE}"]


@pytest.fixture
def run(tmp_path):
    """A finished run of a small, untrained MSA-Net with one checkpoint, not in MLflow yet."""
    torch.manual_seed(0)
    model = asdict(MsanetModel(width=1 / 16))
    options = {k: v for k, v in model.items() if k != "name"}
    weights = GENERATORS["msanet"](**options).state_dict()
    run = str(tmp_path / "runs" / "first")
    saver = Saver(folder_at(run), keep=1)
    saver.save(1200, {"generator": dict(weights)}, {"model": model})
    saver.close()
    return run


def track(run):
    tracker = Tracker(run, experiment="test", run_name="first")
    tracker.start({"seed": 3}, {})
    for step, psnr in ((400, 18.0), (1200, 21.0)):
        tracker.metrics({"val/psnr": psnr}, step)
    tracker.finish("FAILED")


def client_of(run):
    return client.connect(client.tracking_uri(client.default_root(run)))


def test_scores_reach_the_run_and_a_comparison_that_has_mlflow_alone(words, run, tmp_path):
    track(run)
    result = evaluate.main(compose("evaluate", [f"checkpoint={run}", *words]).config)
    recorded = client_of(run).get_run(read_run_json(run)["mlflow_run_id"])
    assert recorded.info.status == "FAILED"  # an evaluation changes no status
    assert recorded.data.metrics["eval/msanet/psnr"] == pytest.approx(result["mean6"]["psnr"])
    bucket = result["buckets"]["(0.1,0.2]"]["psnr"]
    assert recorded.data.metrics["eval/msanet/psnr 0.1_0.2"] == pytest.approx(bucket)
    shutil.rmtree(run)
    root = str(tmp_path / "runs")
    (there,) = collect.collect(root)
    assert there.facts["pairs_digest"] == result["pairs_digest"]
    out = tmp_path / "report"
    compared = compare.main(compose("compare", [f"root={root}", f"out={out}"]).config)
    assert [r["label"] for r in compared["rows"] if r["kind"] == "ours"] == ["first@1200"]
    page = (out / "compare.html").read_text()
    assert page.count("data:image/png") == 5 * 3  # five images: original, mask, result
    logged = client_of(run).list_artifacts(read_run_json(str(out))["mlflow_run_id"], "report")
    assert sorted(Path(a.path).name for a in logged) == [
        f"compare.{kind}" for kind in ("csv", "html", "md")
    ]


def test_scores_of_a_run_that_mlflow_does_not_know_wait_for_it(words, run, capsys):
    result = evaluate.main(compose("evaluate", [f"checkpoint={run}", *words, "limit=1"]).config)
    assert "has no MLflow run yet" in capsys.readouterr().err
    spool = Path(run, "evaluation", "spool")
    assert Unsent(spool).count() == 3  # numbers, table, images
    track(run)
    assert send(run, spool) is None
    recorded = client_of(run).get_run(read_run_json(run)["mlflow_run_id"])
    assert recorded.data.metrics["eval/msanet/psnr"] == pytest.approx(result["mean6"]["psnr"])
    assert Unsent(spool).count() == 0
