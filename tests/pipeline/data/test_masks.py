import cv2
import pytest

from pipeline.config.schema import MakeMasksConfig
from pipeline.data.masks import main
from shards.manifest import open_manifest
from shards.mask_sets import MaskSet
from shards.masks import BUCKETS, FIXED, NAMES, irregular


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


def test_published_masks_are_imported_and_squares_added(tmp_path):
    source = tmp_path / "testing_mask_dataset"
    source.mkdir()
    for number, (low, high) in enumerate([*BUCKETS, *BUCKETS, (0.7, 0.8)]):
        hole = irregular(128, 128, low, high, 0, (number,))
        cv2.imwrite(str(source / f"{number:05d}.png"), hole * 255)
    made = main(
        MakeMasksConfig(out=str(tmp_path / "set"), size=64, per_bucket=2, source=str(source))
    )
    assert made["polarity"] == "hole_white" and made["outside"] == 1
    assert made["buckets"][FIXED] == 2 and made["masks"] == 14
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
