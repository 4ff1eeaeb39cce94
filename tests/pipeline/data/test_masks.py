from dataclasses import asdict

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config.compose import compose
from pipeline.config.schema import MakeMasksConfig
from pipeline.data.masks import main
from pipeline.evaluation.pairs import validation_pairs
from pipeline.training.preflight import check_masks
from shards.manifest import open_manifest
from shards.mask_sets import MaskSet, hole_sampler
from shards.masks import BUCKETS, FIXED, NAMES, MaskPolicy, irregular


def test_all_buckets_are_drawn_and_a_second_run_changes_nothing(tmp_path, capsys):
    config = MakeMasksConfig(out=str(tmp_path), size=64, per_bucket=3)
    made = main(config)
    assert made["buckets"] == {name: 3 for name in (*NAMES, FIXED)} and made["masks"] == 21
    assert made["digest"] == open_manifest(str(tmp_path)).digest
    assert main(config) == made
    shown = capsys.readouterr()
    assert shown.out == "" and made["digest"][:12] in shown.err
    with pytest.raises(ValueError, match="per_bucket"):
        main(MakeMasksConfig(out=str(tmp_path), size=64, per_bucket=4))


# Row 32
@pytest.mark.parametrize(("fixed", "squares"), [(None, 0), (False, 0), (True, 2)])
def test_masks_are_imported_and_squares_added_when_asked(tmp_path, fixed, squares):
    source = tmp_path / "testing_mask_dataset"
    source.mkdir()
    for number, (low, high) in enumerate([*BUCKETS, *BUCKETS, (0.7, 0.8)]):
        hole = irregular(128, 128, low, high, 0, (number,))
        cv2.imwrite(str(source / f"{number:05d}.png"), hole * 255)
    made = main(
        MakeMasksConfig(
            out=str(tmp_path / "set"), size=64, per_bucket=2, source=str(source), fixed=fixed
        )
    )
    assert made["polarity"] == "hole_white" and made["outside"] == 1
    assert made["buckets"].get(FIXED, 0) == squares and made["masks"] == 12 + squares
    masks = MaskSet(open_manifest(str(tmp_path / "set")))
    assert masks.buckets[:6] == list(NAMES) and masks[0].shape == (64, 64)


def test_a_wrong_polarity_leaves_nothing_behind(tmp_path):
    source = tmp_path / "masks"
    source.mkdir()
    for number, (low, high) in enumerate(BUCKETS):
        hole = irregular(64, 64, low, high, 0, (number,))
        cv2.imwrite(str(source / f"{number:05d}.png"), hole * 255)
    config = MakeMasksConfig(
        out=str(tmp_path / "set"), size=64, source=str(source), polarity="hole_black"
    )
    with pytest.raises(ValueError, match="contradicts"):
        main(config)
    assert not (tmp_path / "set").exists()


# Row 32
@pytest.mark.parametrize("named", ["0.1-0.2", "mine"])
@pytest.mark.parametrize(("dtype", "paint"), [("uint8", 1), ("uint8", 255), ("uint16", 1)])
def test_own_masks_are_trained_and_validated_on_as_they_are(
    tmp_path, small_set, named, dtype, paint
):
    drawn = [irregular(64, 64, 0.1, 0.2, 0, (number,)) for number in range(5)]
    source = tmp_path / "source" / named
    source.mkdir(parents=True)
    for number, hole in enumerate(drawn):
        Image.fromarray((hole * paint).astype(dtype)).save(source / f"{number}.png")
    url = str(tmp_path / "set")
    made = main(MakeMasksConfig(out=url, size=64, source=str(tmp_path / "source")))
    assert made["buckets"] == {"(0.1,0.2]": 5} and made["outside"] == 0

    words = ["experiment=quickstart", "masks=external", f"masks.url={url}", "validate.size=64"]
    config = compose("train", [*words, f"data.url={small_set}", "validate.pairs=6"]).config
    check_masks(config.masks, config.validate.size)
    pairs = validation_pairs(config, open_manifest(small_set))
    holes = {hole.tobytes() for hole in drawn}
    assert {mask.tobytes() for mask in pairs.load(0, len(pairs)).masks.numpy()} == holes
    pick = hole_sampler(MaskPolicy(**asdict(config.masks)), 64, 64)
    assert {pick(0, 0, key).tobytes() for key in range(60)} == holes


def test_validation_takes_masks_of_every_ratio_that_is_trained_on_and_no_squares(
    tmp_path, small_set
):
    url = str(tmp_path / "set")
    main(MakeMasksConfig(out=url, size=64, per_bucket=3))
    words = ["experiment=quickstart", "masks=external", f"masks.url={url}", "validate.size=64"]
    words += [f"data.url={small_set}", "validate.pairs=6", "masks.low=0.2", "masks.high=0.5"]
    pairs = validation_pairs(compose("train", words).config, open_manifest(small_set))
    ratios = np.sort(pairs.load(0, 6).masks.numpy().mean((1, 2)))
    assert np.digitize(ratios, [0.2, 0.3, 0.4, 0.5], right=True).tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("ratio", "polarity", "line"),
    [
        (0.0, "auto", "do not decide"),
        (0.005, "hole_white", "none of the 4 masks has a hole ratio in"),
        (1.0, "hole_white", "none of the 4 masks has a hole ratio in"),
        (0.65, "hole_white", "set polarity=hole_black"),
    ],
)
def test_masks_outside_all_ratios_make_no_set(tmp_path, ratio, polarity, line):
    source = tmp_path / "masks"
    source.mkdir()
    for number in range(4):
        pixels = np.zeros(64 * 64, np.uint8)
        pixels[: int(ratio * pixels.size)] = 255
        Image.fromarray(pixels.reshape(64, 64)).save(source / f"{number}.png")
    out = tmp_path / "set"
    with pytest.raises(ValueError, match=line):
        main(MakeMasksConfig(out=str(out), source=str(source), polarity=polarity, fixed=True))
    assert not (out / "manifest.json").exists()


# Row 32
@pytest.mark.slow
def test_five_own_masks_are_enough_to_train(tmp_path, verb, train):
    source = tmp_path / "mine"
    source.mkdir()
    for number in range(5):
        hole = irregular(64, 64, 0.1, 0.2, 0, (number,))
        Image.fromarray(hole).save(source / f"{number}.png")
    url = f"{tmp_path}/set"
    assert verb("masks", f"source={source}", f"out={url}", "size=64").returncode == 0
    done = train(f"{tmp_path}/run", "masks=external", f"masks.url={url}", "max_images=16")
    assert done.returncode == 0, done.stderr
    assert "val/psnr" in done.stdout + done.stderr
