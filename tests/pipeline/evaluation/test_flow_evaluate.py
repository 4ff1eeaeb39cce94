import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import GENERATORS
from pipeline.config.compose import compose
from pipeline.config.groups import MsanetModel
from pipeline.evaluation import evaluate, pair_images, results, scoring
from pipeline.inference.sources import telea
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json
from pipeline.training.checkpointing import Saver
from shards.masks import NAMES
from tests.support.pairs import BUCKETS, PICTURES, SIZE, crops, image_set, mask_set

PAIRS = PICTURES * len(BUCKETS)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """What every command of this file says about its data."""
    out = tmp_path_factory.mktemp("sets")
    urls = image_set(out / "images", crops()), mask_set(out / "masks")
    return [f"data.url={urls[0]}", f"masks.url={urls[1]}", f"protocol.size={SIZE}"]


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint of a small, untrained MSA-Net."""
    torch.manual_seed(0)
    model = asdict(MsanetModel(width=1 / 16))
    options = {k: v for k, v in model.items() if k != "name"}
    weights = GENERATORS["msanet"](**options).state_dict()
    saver = Saver(folder_at(str(tmp_path / "run")), keep=1)
    saver.save(1200, {"generator": dict(weights)}, {"model": model})
    saver.close()
    return str(tmp_path / "run")


def verb(*words):
    return evaluate.main(compose("evaluate", list(words)).config)


def command(*words, **environment):
    line = [sys.executable, "-m", "pipeline", "evaluate", *words, "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, capture_output=True, text=True, env=env)


def test_the_result_has_the_shape_that_commands_rely_on(words, tmp_path):
    result = verb("model=telea", *words, f"out={tmp_path}/t.parquet")
    assert {"protocol", "weights", "pairs", "buckets", "mean6"} <= set(result)
    assert result["protocol"] == "msanet" and result["pairs"] == PAIRS
    assert list(result["buckets"]) == BUCKETS
    for row in result["buckets"].values():
        assert {"n", "psnr", "ssim", "l1", "psnr_ci"} <= set(row)
        low, high = row["psnr_ci"]
        assert row["n"] == PICTURES and low <= row["psnr"] <= high
    mean = np.mean([result["buckets"][name]["psnr"] for name in NAMES])
    assert result["mean6"]["psnr"] == pytest.approx(mean)
    json.dumps(result, allow_nan=False)
    table, facts = results.load(f"{tmp_path}/t.parquet")
    assert table.num_rows == PAIRS and facts["pairs_digest"] == result["pairs_digest"]
    assert "mean of six" in evaluate.show(result)


def test_a_run_s_scores_lie_in_its_folder_and_its_checkpoint_is_kept(words, run):
    result = verb(f"checkpoint={run}", *words, "tracking.enabled=false", "limit=2")
    stem = f"msanet-raw-000000001200-{result['pairs_digest'][:8]}"
    found = sorted(p.name for p in Path(run, "evaluation").iterdir())
    assert found == [f"{stem}.parquet", f"{stem}.pictures.zip"]
    assert result["weights"] == "raw" and result["images_seen"] == 1200
    assert read_run_json(run)["pinned"] == [1200]


def test_exported_pairs_filled_by_somebody_else_score_as_if_we_had_filled_them(words, tmp_path):
    pairs, answers = tmp_path / "pairs", tmp_path / "theirs"
    told = verb(*words, f"export={pairs}")
    assert told["exported"] == PAIRS and len(list(pairs.iterdir())) == 2 * PAIRS
    answers.mkdir()
    for path in pairs.glob("*_mask.png"):
        name = path.name.removesuffix("_mask.png") + ".png"
        image = torch.from_numpy(np.asarray(Image.open(pairs / name)).copy())
        mask = torch.from_numpy(np.asarray(Image.open(path).convert("L")).copy()) > 127
        image = image.permute(2, 0, 1)[None] / 255 * ~mask
        filled = telea(image, mask[None, None].float())[0].permute(1, 2, 0)
        scribbled = torch.where(mask[..., None], filled, 0.3)  # known pixels do not count
        Image.fromarray((scribbled * 255).round().byte().numpy()).save(answers / name)
    theirs = verb(*words, f"predictions={answers}", f"out={tmp_path}/theirs.parquet")
    ours = verb(*words, "model=telea", f"out={tmp_path}/ours.parquet")
    assert theirs["pairs_digest"] == ours["pairs_digest"] == told["pairs_digest"]
    assert theirs["buckets"] == ours["buckets"]


def test_predictions_that_are_missing_or_of_another_size_are_named(words, tmp_path):
    folder = tmp_path / "theirs"
    verb(*words, f"export={folder}", "limit=1")
    (folder / "000000000-b3.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 7 pictures, first 000000000-b3\.png"):
        verb(*words, f"predictions={folder}", "limit=1")
    Image.new("RGB", (SIZE, SIZE + 1)).save(folder / "000000000-b3.png")
    with pytest.raises(ValueError, match=r"000000000-b3\.png is 64×65, its pair 64×64"):
        verb(*words, f"predictions={folder}", "limit=1")


def test_an_interrupted_evaluation_goes_on_from_its_parts(words, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 1)
    whole = verb(*words, "model=telea", "batch=5", f"out={tmp_path}/a.parquet")
    scored, save = [], results.save

    def breaks(url, table, facts):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(url)
        save(url, table, facts)

    again = (*words, "model=telea", "batch=5", f"out={tmp_path}/b.parquet")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results, "save", breaks)
        verb(*again)
    assert not (tmp_path / "b.parquet").exists()
    asked, score = [], scoring._score
    monkeypatch.setattr(scoring, "_score", lambda *a: asked.append(a) or score(*a))
    result = verb(*again)
    assert len(asked) == PAIRS / 5 - 3
    assert result["buckets"] == whole["buckets"] and result["mean6"] == whole["mean6"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{kind}" for name in "ab" for kind in ("parquet", "pictures.zip")
    ]
    for kind in ("parquet", "pictures.zip"):
        one, other = (tmp_path / f"{name}.{kind}" for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_some_pictures_of_every_bucket_are_kept_beside_the_table(words, tmp_path):
    result = verb(*words, "model=mean_colour", f"out={tmp_path}/t.parquet", "pictures=4")
    kept = pair_images.load(result["parquet"])
    assert [s.name[-2:] for s in kept] == ["b0", "b1", "b2", "b3"]
    for sample, crop in zip(kept, crops()):
        hole = sample.mask == 1
        assert (sample.image == crop).all()
        assert (sample.result[~hole] == crop[~hole]).all()
        colour = np.round(crop[~hole].mean(0))
        assert (abs(sample.result[hole].astype(int) - colour) <= 1).all()


def test_another_yardstick_never_goes_on_from_the_parts_of_one(words, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 1)
    whole = verb(*words, "model=telea", "batch=5", f"out={tmp_path}/whole.parquet")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def breaks(*given):
            raise KeyboardInterrupt

        patch.setattr(evaluate.results, "merge", breaks)
        verb(*words, "model=mean_colour", "batch=5", f"out={tmp_path}/b.parquet")
    found = verb(*words, "model=telea", "batch=5", f"out={tmp_path}/b.parquet")
    assert found["buckets"] == whole["buckets"]


def test_other_weights_never_go_on_from_these_parts():
    same = {"sha256": "a", "pairs_digest": "b", "batch": 8}
    assert evaluate.folder("x.parquet", same) != evaluate.folder(
        "x.parquet", {**same, "sha256": "c"}
    )


def test_parts_that_never_come_are_named_instead_of_waited_for(tmp_path):
    with pytest.raises(TimeoutError, match=r"2 of 2 parts .* first part-000000\.parquet"):
        evaluate.collect(str(tmp_path), 2, patience=0.01)


@pytest.mark.slow
@pytest.mark.dist
def test_three_processes_write_the_bytes_that_one_writes(words, run, tmp_path):
    common = (f"checkpoint={run}", *words, "tracking.enabled=false", "batch=1")
    for count in (1, 3):
        done = command(*common, f"processes={count}", f"out={tmp_path}/{count}.parquet")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["pairs"] == PAIRS
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "3.parquet").read_bytes()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["model=telea", "checkpoint=x"], "checkpoint= and model= given to score: give one of"),
        ([], "nothing given to score: give one of checkpoint=, model=, predictions="),
        (["checkpoint=nowhere"], "nowhere holds no checkpoint"),
        (["model=none.pt2"], r"none\.pt2 is no file"),
        (["model=telea", "split=test"], "has no split 'test'"),
        (["model=telea", "protocol.size=32"], "masks are 64×64"),
        (["model=telea", "protocol.buckets=['(0.6,0.7]']"], "has no masks in"),
    ],
)
def test_what_a_user_gets_wrong_is_one_clear_line(words, tmp_path, given, line):
    with pytest.raises(ValueError, match=line) as error:
        verb(*words, f"out={tmp_path}/x.parquet", *given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_data_url_is_asked_for_by_name():
    with pytest.raises(ValueError, match="data.url= is missing"):
        verb("model=telea")
