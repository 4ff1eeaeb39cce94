"""Names that ambiguous names of splits, on both sides: read, refused, and taken for classes."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from shards.sources import source

SPLIT = {
    "train2017/1.jpg val2017/2.jpg": "train val",
    "Train/1.jpg Validation/2.jpg TEST/3.jpg": "train val test",
    "training/1.jpg testing/2.jpg": "train test",
    "train_large/1.jpg val_large/2.jpg test_large/3.jpg": "train val test",
    "seg_train/a/1.jpg seg_test/a/2.jpg seg_pred/3.jpg": "train test",
    "photos/train/1.jpg photos/val/2.jpg": "train val",
    "a/b/train/train_station/1.jpg a/b/val/2.jpg": "train val",
    "train/1.jpg val/2.jpg train_masks/3.jpg": "train val",
    "train_0/1.jpg train_1/2.jpg val/3.jpg": "train train val",
    "train/1.jpg": "train",
}
REFUSED = {
    "train/1.jpg val_source/2.jpg eval_source/3.jpg": "eval_source/, train/, val_source/",
    "train_256/1.jpg val_source_256/2.jpg visual_test_source_256/3.jpg": "val_source_256/, visual",
    "trainA/1.jpg trainB/2.jpg testA/3.jpg testB/4.jpg": "testA/, testB/, trainA/, trainB/",
    "DIV2K_train_HR/1.jpg DIV2K_valid_HR/2.jpg DIV2K_train_LR/3.jpg": "DIV2K_valid_HR/",
    "paris_train_original/1.jpg paris_eval_gt/2.jpg": "paris_eval_gt/, paris_train_original/",
    "train/1.jpg eval/2.jpg": "eval/, train/",
    "trainval/1.jpg test/2.jpg": "test/, trainval/",
    "data_large/1.jpg val_large/2.jpg": "has val_large/ but no train/",
    "photos/val/1.jpg": "has val/ but no train/",
    "bottle/train/1.jpg bottle/test/2.jpg cable/train/3.jpg": "bottle/test/, bottle/train/",
    "images/train2017/1.jpg images/val2017/2.jpg more/3.jpg": "images/train2017/, images/val2017/",
}
PACKED = {
    "train/1.jpg val.zip": "train/, val.zip",
    "train/1.jpg val/2.jpg test.tar train.tar": "test.tar, train/, val/",
    "train2017.zip val2017.zip": "train2017.zip, val2017.zip",
    "train.tar.gz eval.tgz": "eval.tgz, train.tar.gz",
}
CLASSES = [
    "train_station/platform/1.jpg train_interior/2.jpg valley/3.jpg airfield/4.jpg",
    "t/train_station/platform/1.jpg t/train_interior/2.jpg v/valley/3.jpg t/tower/4.jpg",
    "testing_ground/1.jpg beach/2.jpg",
    "bullet_train/1.jpg steam_train/2.jpg vault/3.jpg",
    "test_tube/1.jpg beaker/2.jpg",
    "trainer/1.jpg trains/2.jpg evaluator/3.jpg validity/4.jpg",
    "vehicles/train/1.jpg vehicles/bus/2.jpg animals/cat/3.jpg",
    "1.jpg train_7.jpg val_8.jpg",
]


@pytest.fixture(params=["folder", "zip", "wrapped zip"])
def laid_out(request: pytest.FixtureRequest, tmp_path: Path):
    """A function that lays files out, and gives the folder, or a zip with or without a prefix."""

    def make(names: str) -> Path:
        if request.param == "folder":
            for name in names.split():
                path = tmp_path / "in" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(name)
            return tmp_path / "in"
        prefix = "in/" if request.param.startswith("wrapped") else ""
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for name in names.split():
                archive.writestr(prefix + name, name)
        return tmp_path / "p.zip"

    return make


def splits_of(place: Path) -> Counter[str]:
    return Counter(entry.split for entry in source("folder").entries(place, 0.0))


@pytest.mark.parametrize("names", SPLIT)
def test_folders_that_differ_in_the_split_alone_are_read(laid_out, names: str) -> None:
    assert splits_of(laid_out(names)) == Counter(SPLIT[names].split())


@pytest.mark.parametrize("names", REFUSED)
def test_folders_whose_split_is_unclear_are_refused_by_name(laid_out, names: str) -> None:
    place = laid_out(names)
    with pytest.raises(ValueError) as error:
        splits_of(place)
    assert REFUSED[names] in str(error.value)
    assert str(place) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("names", PACKED)
def test_splits_that_are_still_packed_are_refused_by_name(tmp_path: Path, names: str) -> None:
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match=PACKED[names]):
        splits_of(tmp_path)


@pytest.mark.parametrize("names", CLASSES)
def test_classes_whose_names_begin_as_a_split_are_classes(laid_out, names: str) -> None:
    assert splits_of(laid_out(names)) == {"train": len(names.split())}


def test_what_is_not_taken_and_what_a_folder_was_read_as_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("train2017/1.jpg", "val2017/2.jpg", "other/3.jpg", "4.jpg", "train2017.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert splits_of(tmp_path) == {"train": 1, "val": 1}
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "splits: train2017/ is train, val2017/ is val",
        "skipped: other/ (1 images), 1 images next to the split folders, train2017.zip",
    ]


def test_val_zip_is_the_folder_val_as_a_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "val2017.zip", "w") as archive:
        archive.writestr("val2017/1.jpg", "1")
    assert splits_of(tmp_path / "val2017.zip") == {"train": 1}


def test_train_alone_is_held_out_from_as_a_flat_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i in range(100):
        (tmp_path / "train" / f"{i}.jpg").write_text(f"content {i}")
    splits = Counter(entry.split for entry in source("folder").entries(tmp_path, 0.3))
    assert 10 < splits["val"] < 50 and splits.total() == 100
