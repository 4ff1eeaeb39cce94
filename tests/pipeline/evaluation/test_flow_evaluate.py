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
from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose
from pipeline.config.methods.msanet import MsanetModel
from pipeline.config.resolve import to_yaml
from pipeline.evaluation import evaluate, origin, pair_images, partial_results, results
from pipeline.inference import predict
from pipeline.inference.baselines import telea
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json
from pipeline.training.checkpointing import Saver
from shards.masks import NAMES
from tests.support.pairs import BUCKETS, IMAGES, SIZE, crops, image_set, mask_set

PAIRS = IMAGES * len(BUCKETS)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The data that every command of this file evaluates on."""
    out = tmp_path_factory.mktemp("sets")
    urls = image_set(out / "images", crops()), mask_set(out / "masks")
    return [f"data.url={urls[0]}", f"masks.url={urls[1]}", f"protocol.size={SIZE}"]


def save(run, images_seen):
    torch.manual_seed(images_seen)
    model = asdict(MsanetModel(width=1 / 16))
    options = {k: v for k, v in model.items() if k != "name"}
    weights = GENERATORS["msanet"](**options).state_dict()
    saver = Saver(folder_at(str(run)), keep=2)
    saver.save(images_seen, {"generator": dict(weights)}, {"model": model})
    saver.close()


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint of a small, untrained MSA-Net."""
    save(tmp_path / "run", 1200)
    return str(tmp_path / "run")


def run_evaluate(*words):
    config = compose("evaluate", list(words)).config
    COMMANDS["evaluate"].check(config)
    return evaluate.main(config)


def command(*words, **environment):
    line = [sys.executable, "-m", "pipeline", "evaluate", *words, "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, capture_output=True, text=True, env=env)


def test_the_result_has_the_shape_that_commands_rely_on(words, tmp_path):
    result = run_evaluate("model=telea", *words, f"out={tmp_path}/t.parquet")
    assert {"protocol", "weights", "pairs", "buckets", "mean6"} <= set(result)
    assert result["protocol"] == "msanet" and result["pairs"] == PAIRS
    assert list(result["buckets"]) == BUCKETS
    for row in result["buckets"].values():
        assert {"n", "psnr", "ssim", "l1", "psnr_ci"} <= set(row)
        low, high = row["psnr_ci"]
        assert row["n"] == IMAGES and low <= row["psnr"] <= high
    mean = np.mean([result["buckets"][name]["psnr"] for name in NAMES])
    assert result["mean6"]["psnr"] == pytest.approx(mean)
    json.dumps(result, allow_nan=False)
    table, facts = results.load(f"{tmp_path}/t.parquet")
    assert table.num_rows == PAIRS and facts["pairs_digest"] == result["pairs_digest"]
    assert "mean of six" in evaluate.show(result)


def test_the_scores_of_a_run_are_written_to_its_folder_and_its_checkpoint_is_pinned(words, run):
    result = run_evaluate(f"checkpoint={run}", *words, "tracking.enabled=false", "limit=2")
    stem = f"msanet-raw-000000001200-{result['pairs_digest'][:8]}-gauss11_rgb"
    names = sorted(p.name for p in Path(run, "evaluation").iterdir())
    assert names == [f"{stem}.images.zip", f"{stem}.parquet"]
    assert result["weights"] == "raw" and result["images_seen"] == 1200
    assert read_run_json(run)["pinned"] == [1200]

    save(run, 2400)  # the run's last checkpoint is now another one
    assert run_evaluate(f"verify={result['parquet']}")["differences"] == []


@pytest.mark.parametrize(
    ("name", "longest", "selected"),
    [
        ("", 1200, "the last"),
        ("/checkpoints/best", 4000, "best PSNR of 2 validations of up to 70 pairs"),
        ("/checkpoints/best", 1200, "best PSNR of 3 validations of up to 70 pairs"),
        ("/checkpoints/000000001200", 1200, "given by name"),
    ],
)
def test_how_a_checkpoint_was_chosen_is_recorded(name, longest, selected, run):
    train = ["experiment=quickstart", "data.url=x", f"max_images={longest}", "validate.pairs=70"]
    config = compose("train", [*train, "validate.every_images=500"]).config
    Path(run, "config.yaml").write_text(to_yaml(config))
    assert origin.selection(run + name, run) == {"selected": selected}


def test_predictions_for_exported_pairs_score_like_our_own_fill(words, tmp_path):
    pairs, predictions = tmp_path / "pairs", tmp_path / "theirs"
    exported = run_evaluate(*words, f"export={pairs}")
    assert exported["exported"] == PAIRS and len(list(pairs.iterdir())) == 2 * PAIRS
    predictions.mkdir()
    for path in pairs.glob("*_mask.png"):
        name = path.name.removesuffix("_mask.png") + ".png"
        image = torch.from_numpy(np.asarray(Image.open(pairs / name)).copy())
        mask = torch.from_numpy(np.asarray(Image.open(path).convert("L")).copy()) > 127
        image = image.permute(2, 0, 1)[None] / 255 * ~mask
        filled = telea(image, mask[None, None].float())[0].permute(1, 2, 0)
        scribbled = torch.where(mask[..., None], filled, 0.3)  # known pixels do not count
        Image.fromarray((scribbled * 255).round().byte().numpy()).save(predictions / name)
    theirs = run_evaluate(*words, f"predictions={predictions}", f"out={tmp_path}/theirs.parquet")
    ours = run_evaluate(*words, "model=telea", f"out={tmp_path}/ours.parquet")
    assert theirs["pairs_digest"] == ours["pairs_digest"] == exported["pairs_digest"]
    assert theirs["buckets"] == ours["buckets"]


# Row 22
def test_export_predict_and_predictions_score_like_the_model(words, tmp_path):
    pairs, filled = tmp_path / "pairs", tmp_path / "filled"
    run_evaluate(*words, "limit=2", f"export={pairs}")
    given = ["model=telea", f"image={pairs}", f"mask={pairs}", f"out={filled}"]
    predict.main(compose("predict", given).config)
    theirs = run_evaluate(*words, "limit=2", f"predictions={filled}", f"out={tmp_path}/a.parquet")
    ours = run_evaluate(*words, "limit=2", "model=telea", f"out={tmp_path}/b.parquet")
    assert not list(filled.glob("*_mask*"))
    for name in BUCKETS:
        psnr = theirs["buckets"][name]["psnr"], ours["buckets"][name]["psnr"]
        assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)


# Row 30
@pytest.mark.parametrize(("filled", "equal"), [(0, "14 of 14"), (5, "9 of 14"), (14, "")])
def test_predictions_that_are_the_original_images_are_warned_of(
    words, tmp_path, capsys, filled, equal
):
    pairs = tmp_path / "pairs"
    assert run_evaluate(*words, "limit=2", f"export={pairs}")["exported"] == 14
    images = sorted(path for path in pairs.iterdir() if "_mask" not in path.name)
    for path in images[:filled]:
        Image.new("RGB", (SIZE, SIZE), (0, 255, 0)).save(path)
    out = f"out={tmp_path}/t.parquet"
    result = run_evaluate(*words, "limit=2", f"predictions={pairs}", out)
    line = f"warning: {equal} predictions are the original images"
    for said in (capsys.readouterr().err, result["warning"]):
        assert line in said if equal else "warning" not in said


# Row 30
@pytest.mark.parametrize("limit", [1, 4, 5])
def test_fewer_than_five_images_have_no_interval(words, tmp_path, limit):
    result = run_evaluate("model=telea", *words, f"limit={limit}", f"out={tmp_path}/t.parquet")
    for row in [*result["buckets"].values(), result["mean6"]]:
        assert row["n"] == limit and (row["psnr_ci"] is not None) == (limit >= 5)
    assert ("[" in results.as_text(result)) == (limit >= 5)


def test_predictions_that_are_missing_or_of_another_size_are_named(words, tmp_path):
    folder = tmp_path / "theirs"
    run_evaluate(*words, f"export={folder}", "limit=1")
    (folder / "000000000-b3.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 7 images, first 000000000-b3\.png"):
        run_evaluate(*words, f"predictions={folder}", "limit=1")
    Image.new("RGB", (SIZE, SIZE + 1)).save(folder / "000000000-b3.png")
    with pytest.raises(ValueError, match=r"000000000-b3\.png is 64×65, expected 64×64"):
        run_evaluate(*words, f"predictions={folder}", "limit=1")


def test_an_interrupted_evaluation_continues_from_its_parts(words, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCHES_PER_PART", 1)
    whole = run_evaluate(*words, "model=telea", "batch=5", f"out={tmp_path}/a.parquet")
    scored, save = [], results.save

    def breaks(url, table, facts):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(url)
        save(url, table, facts)

    again = (*words, "model=telea", "batch=5", f"out={tmp_path}/b.parquet")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results, "save", breaks)
        run_evaluate(*again)
    assert not (tmp_path / "b.parquet").exists()
    calls, score = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda *a, **k: calls.append(a) or score(*a, **k))
    result = run_evaluate(*again)
    assert len(calls) == PAIRS / 5 - 3
    assert result["buckets"] == whole["buckets"] and result["mean6"] == whole["mean6"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{kind}" for name in "ab" for kind in ("images.zip", "parquet")
    ]
    for kind in ("parquet", "images.zip"):
        one, other = (tmp_path / f"{name}.{kind}" for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_sample_images_of_every_bucket_are_kept_with_the_table(words, tmp_path):
    result = run_evaluate(*words, "model=mean_color", f"out={tmp_path}/t.parquet", "images=4")
    kept = pair_images.load(result["parquet"])
    assert [s.name[-2:] for s in kept] == ["b0", "b1", "b2", "b3"]
    for sample, crop in zip(kept, crops()):
        hole = sample.mask == 1
        assert (sample.image == crop).all()
        assert (sample.result[~hole] == crop[~hole]).all()
        color = np.round(crop[~hole].mean(0))
        assert (abs(sample.result[hole].astype(int) - color) <= 1).all()


def test_former_names_of_the_key_the_baseline_and_the_file_are_still_read(words, tmp_path):
    new = run_evaluate(*words, "model=mean_color", f"out={tmp_path}/t.parquet", "images=2")
    old = run_evaluate(*words, "model=mean_colour", f"out={tmp_path}/u.parquet", "pictures=2")
    assert old["pictures"] == old["samples"] == f"{tmp_path}/u.images.zip"
    assert old["name"] == new["name"] == "mean_color" and old["buckets"] == new["buckets"]
    Path(old["samples"]).rename(tmp_path / "u.pictures.zip")
    kept = [pair_images.load(each["parquet"]) for each in (new, old)]
    assert [s.name for s in kept[0]] == [s.name for s in kept[1]] and len(kept[1]) == 2
    assert all((s.result == t.result).all() for s, t in zip(*kept))


def test_the_parts_of_one_baseline_are_not_reused_for_another(words, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCHES_PER_PART", 1)
    whole = run_evaluate(*words, "model=telea", "batch=5", f"out={tmp_path}/whole.parquet")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def breaks(*arguments):
            raise KeyboardInterrupt

        patch.setattr(evaluate.results, "merge", breaks)
        run_evaluate(*words, "model=mean_color", "batch=5", f"out={tmp_path}/b.parquet")
    result = run_evaluate(*words, "model=telea", "batch=5", f"out={tmp_path}/b.parquet")
    assert result["buckets"] == whole["buckets"]


def test_the_parts_of_other_weights_are_not_reused():
    same = {"sha256": "a", "pairs_digest": "b", "batch": 8}
    assert partial_results.folder("x.parquet", same) != partial_results.folder(
        "x.parquet", {**same, "sha256": "c"}
    )


def test_waiting_for_missing_parts_ends_with_an_error_that_names_them(tmp_path):
    with pytest.raises(TimeoutError, match=r"2 of 2 parts .* first part-000000\.parquet"):
        partial_results.collect(str(tmp_path), 2, patience=0.01)


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
        (["checkpoint=nowhere"], "checkpoint=nowhere holds no checkpoint"),
        (["model=no/such"], "model=no/such does not exist: give a run's folder"),
        (["model=harmonc"], "baselines are .*harmonic"),
        (["model=none.pt2"], r"none\.pt2: no such file"),
        (["model=telea", "split=test"], "has no split 'test'"),
        (["model=telea", "protocol.size=32"], "masks are 64×64"),
        (["model=telea", "protocol.buckets=['(0.6,0.7]']"], "has no masks in"),
    ],
)
def test_a_user_s_mistake_gives_one_line(words, tmp_path, given, line):
    with pytest.raises(ValueError, match=line) as error:
        run_evaluate(*words, f"out={tmp_path}/x.parquet", *given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
