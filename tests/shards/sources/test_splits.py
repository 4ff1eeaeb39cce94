"""Names that ambiguous names of splits, on both sides: read, refused, and taken for classes."""

import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import external
from shards.sources import source
from tests.support.sets import jpeg, smooth_image

SPLIT = {
    "train2017/1.jpg val2017/2.jpg": "train val",
    "Train/1.jpg Validation/2.jpg TEST/3.jpg": "train val test",
    "training/1.jpg testing/2.jpg": "train test",
    "train_large/1.jpg val_large/2.jpg test_large/3.jpg": "train val test",
    "seg_train/a/1.jpg seg_test/a/2.jpg seg_pred/3.jpg": "train test",
    "photos/train/1.jpg photos/val/2.jpg": "train val",
    "a/b/train/train_station/1.jpg a/b/val/2.jpg": "train val",
    "train/1.jpg val/2.jpg train_masks/3.jpg": "train val",
    "train/test_1.jpg train/train_2.jpg val/val_3.jpg": "train train val",
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
    "train_0.jpg val_0.jpg": "train_0.jpg, val_0.jpg",
    "a/b/train_0.jpg a/b/train_1.png a/b/TEST-1.jpg c/2.jpg": "TEST-1.jpg, train_0.jpg",
    "1.jpg COCO_train2014_2.jpg COCO_val2014_3.jpg": "COCO_train2014_2.jpg, COCO_val2014_3.jpg",
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
    "1.jpg 2.jpg train_7.jpg val_8.jpg",
    "train_station_1.jpg beach_2.jpg valley_3.jpg driving_test_4.jpg",
    "a/train_1.jpg a/train_2.jpg b/train_3.jpg",
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


# Row 2
@pytest.mark.parametrize("names", SPLIT)
def test_folders_that_differ_in_the_split_alone_are_read(laid_out, names: str) -> None:
    assert splits_of(laid_out(names)) == Counter(SPLIT[names].split())


# Row 2
@pytest.mark.parametrize("names", REFUSED)
def test_folders_whose_split_is_unclear_are_refused_by_name(laid_out, names: str) -> None:
    place = laid_out(names)
    with pytest.raises(ValueError) as error:
        splits_of(place)
    assert REFUSED[names] in str(error.value)
    assert str(place) in str(error.value) and "\n" not in str(error.value)


# Row 2
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


# Row 2
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


def flat(root: Path, *tops: str) -> None:
    for top in tops:
        (root / top).mkdir(parents=True)
        for i in range(100):
            (root / top / f"{i}.jpg").write_bytes(jpeg(smooth_image(i + 1000 * len(top))))


def packed(root: Path, *tops: str, form: str) -> Path:
    flat(root / "in", *tops)
    return Path(shutil.make_archive(str(root / "packed"), form, root / "in"))


def tars(root: Path, *tops: str) -> Path:
    for top in tops:
        flat(root / "in", top)
        with tarfile.open(root / f"{top}-00.tar", "w") as tar:
            tar.add(root / "in" / top, arcname=".")
    return root


def listed(layout: str) -> Callable[[Path], Counter[str]]:
    return lambda place: Counter(entry.split for entry in source(layout).entries(place, 0.3))


def indexed(place: Path) -> Counter[str]:
    out = str(place.parent / "out")
    splits = external.write(out, "x", str(place), lambda _: None, holdout=0.3).manifest.splits
    return Counter({name: split.samples for name, split in splits.items()})


def made(root: Path, *tops: str) -> Path:
    flat(root, *tops)
    return root


WITHOUT_VAL = {
    "flat": (lambda root: made(root, "a", "b"), listed("folder")),
    "train/": (lambda root: made(root, "train"), listed("folder")),
    "train/ test/": (lambda root: made(root, "train", "test"), listed("folder")),
    "tar of train/": (lambda root: packed(root, "train", form="tar"), listed("folder")),
    "zip of train/ test/": (
        lambda root: packed(root, "train", "test", form="zip"),
        listed("folder"),
    ),
    "easyformat without val/": (
        lambda root: made(root, "places365_standard/train/canyon"),
        listed("places365_standard"),
    ),
    "data_256/ test_256/": (
        lambda root: made(root, "data_256/c/canyon", "test_256"),
        listed("places365_standard"),
    ),
    "wds, one tar": (lambda root: tars(root, "train") / "train-00.tar", indexed),
    "wds, train and test": (lambda root: tars(root, "train", "test"), indexed),
}


# Row 12
@pytest.mark.parametrize("layout", WITHOUT_VAL)
def test_whatever_has_no_val_is_held_out_from(tmp_path: Path, layout: str) -> None:
    """Training without val advises `data.holdout=`: it must have an effect in every layout."""
    make, read = WITHOUT_VAL[layout]
    splits = read(make(tmp_path / "source"))
    images = 200 if layout == "flat" else 100
    assert 0.1 * images < splits["val"] < 0.5 * images
    assert splits["train"] == images - splits["val"]
    assert splits["test"] == (100 if "test" in layout else 0)


WITH_VAL = {
    "train/ val/": (lambda root: made(root, "train", "val"), listed("folder")),
    "data_256/ val_256/": (
        lambda root: made(root, "data_256/c/canyon", "val_256"),
        listed("places365_standard"),
    ),
    "wds": (lambda root: tars(root, "train", "val"), indexed),
}


@pytest.mark.parametrize("layout", WITH_VAL)
def test_a_published_val_is_never_added_to(tmp_path: Path, layout: str) -> None:
    make, read = WITH_VAL[layout]
    assert read(make(tmp_path / "source")) == {"train": 100, "val": 100}
