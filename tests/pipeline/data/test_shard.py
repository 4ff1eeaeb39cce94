"""The command `shard`: arguments, output and exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from shards.manifest import open_manifest
from shards.sources import SOURCES
from tests.support.sets import jpeg, smooth_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(jpeg(smooth_image(number, 300, 280)))
    return folder


def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    status = main(["shard", *map(str, words)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_folder_becomes_a_set_and_a_second_run_changes_nothing(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    words = (f"source={photos}", f"out={tmp_path / 'set'}", "data.holdout=0.2", "--json")
    status, out, err = run(capsys, *words)
    first = json.loads(out.splitlines()[-1])
    assert status == 0
    assert sum(first["splits"].values()) == 40 and set(first["splits"]) == {"train", "val"}
    assert first["digest"] == open_manifest(str(tmp_path / "set")).digest
    assert "40 images in 2 shards" in err and "images/s" in err and "left" in err
    status, out, err = run(capsys, *words)
    assert status == 0 and json.loads(out.splitlines()[-1])["digest"] == first["digest"]
    assert "images/s" not in err


# Row 2
def test_folders_of_lama_are_rejected_and_nothing_is_written(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    for split in ("train", "val_source", "eval_source"):
        shutil.copytree(photos, tmp_path / "lama" / split)
    status, _, err = run(capsys, f"source={tmp_path / 'lama'}", f"out={tmp_path / 'set'}")
    assert status == 2 and "eval_source/, train/, val_source/" in err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


# Row 2
@pytest.mark.parametrize("inside", [("train2017", "val2017"), ("a", "b"), ("train",)])
def test_a_folder_and_any_archive_of_it_are_one_set_to_the_digest(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path, inside: tuple[str, ...]
) -> None:
    for number, name in enumerate(inside):
        (tmp_path / "in" / name).mkdir(parents=True)
        for image in range(number, 40, len(inside)):
            shutil.copy(photos / f"{image}.jpg", tmp_path / "in" / name)
    places = [str(tmp_path / "in")]
    for name, start, what in (("p", "..", "in"), ("dot", ".", "."), ("in", "../..", "")):
        base = (tmp_path / "in" / start).resolve()
        what = what or os.path.relpath(tmp_path / "in", base)
        for form in ("tar", "zip"):
            (tmp_path / "packed").mkdir(exist_ok=True)
            place = shutil.make_archive(str(tmp_path / "packed" / name), form, base, what)
            places.append(place)
    results = []
    for number, place in enumerate(places):
        words = (f"source={place}", f"out={tmp_path / str(number)}", "data.holdout=0.3", "--json")
        status, out, _ = run(capsys, *words)
        assert status == 0
        results.append(json.loads(out.splitlines()[-1]))
    assert len({result["digest"] for result in results}) == 1
    assert set(results[0]["splits"]) == {"train", "val"}
    if "val2017" in inside:
        assert results[0]["splits"] == {"train": 20, "val": 20}


# Row 16
@pytest.mark.parametrize("form", ["folder", "zip", "wds"])
@pytest.mark.parametrize(
    ("splits", "shared"),
    [
        ({"train": range(9), "val": [9, 10, 0, 1, 2]}, {"val in train": 3}),
        ({"train": range(9), "test": [9, 8]}, {"test in train": 1}),
        (
            {"train": range(9), "val": [9, 10], "test": [10, 0, 0]},
            {"test in train": 2, "test in val": 1},
        ),
        ({"train": [0, 0, 1], "val": [2, 2]}, {}),
    ],
)
def test_images_that_are_in_two_splits_are_counted_by_split(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path, form: str, splits: dict,
    shared: dict,
) -> None:  # fmt: skip
    root = tmp_path / "in"
    for split, numbers in splits.items():
        (root / split).mkdir(parents=True)
        for place, number in enumerate(numbers):
            shutil.copy(photos / f"{number}.jpg", root / split / f"{place}.jpg")
        if form == "wds":
            shutil.make_archive(str(tmp_path / "tars" / f"{split}-0"), "tar", root / split)
    place = {"folder": root, "wds": tmp_path / "tars"}.get(form)
    place = place or shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    words = ("data=wds",) if form == "wds" else ()
    status, out, err = run(capsys, *words, f"source={place}", f"out={tmp_path / 'set'}",
                           "data.holdout=0", "--json")  # fmt: skip
    assert status == 0
    assert json.loads(out.splitlines()[-1])["shared"] == shared
    notes = [line for line in err.splitlines() if "are also in" in line]
    assert notes == [
        f"note: {count} images of {names.replace(' in ', ' are also in ')}"
        for names, count in shared.items()
    ]


def test_tasks_share_the_work_and_the_last_one_writes_the_manifest(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    words = (f"source={photos}", "data.shard_mb=1", "data.holdout=0.5", "--json")
    run(capsys, *words, f"out={tmp_path / 'one'}")
    results = []
    for index in range(2):
        status, out, _ = run(capsys, *words, f"out={tmp_path / 'two'}", f"task={index}/2")
        assert status == 0
        results.append(json.loads(out.splitlines()[-1]))
    assert results[0]["shards_left"] == 1
    assert results[1]["digest"] == open_manifest(str(tmp_path / "one")).digest


def test_without_a_source_the_publishers_offer_is_shown(capsys: pytest.CaptureFixture) -> None:
    for words in (["data=places365_standard"], ["data=places365_standard", "--dry-run"]):
        status, out, _ = run(capsys, *words)
        assert status == 0
        for text in ("train_large_places365standard.tar", "1,803,460 train", "license", "page"):
            assert text in out


def test_a_wrong_source_shows_the_offer_and_one_line_of_error(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    status, out, err = run(capsys, "data=celeba", f"source={photos}", f"out={tmp_path / 'set'}")
    assert status == 2 and out == ""
    assert "202,599 faces" in err
    assert "202,599" not in err.splitlines()[-1] and str(photos) in err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("layout", [
    "places365_challenge", "places365_canyon", "celeba", "celeba_trainval", "celeba_hq", "paris",
    "wds", "folder",
])  # fmt: skip
def test_every_preset_composes_and_shows_its_offer(
    capsys: pytest.CaptureFixture, layout: str
) -> None:
    status, out, _ = run(capsys, f"data={layout}")
    assert status == 0 and "source=" in out


def test_dry_run_writes_nothing(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    status, out, _ = run(capsys, f"source={photos}", f"out={tmp_path / 'set'}", "--dry-run")
    assert status == 0 and f"write {tmp_path / 'set'}" in out
    assert not (tmp_path / "set").exists()


def test_images_too_small_for_the_crop_are_rejected_unless_they_are_resized(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    words = (f"source={photos}", f"out={tmp_path / 'set'}", "data.crop=290")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "280x300; the shorter side must be at least 290" in err.splitlines()[-1]
    assert not (tmp_path / "set" / "manifest.json").exists()
    status, _, _ = run(capsys, *words[:1], f"out={tmp_path / 'b'}", "data.crop=290",
                       "data.resize_short=300")  # fmt: skip
    assert status == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["out=x", "source=/nonexistent"], "/nonexistent does not exist"),
        (["source=/tmp"], "shard: out= is missing"),
        (["source=.", "out=x", "task=3/3"], "invalid task=3/3: expected I/N with 0 <= I < N"),
        (["source=.", "out=x", "task=a"], "invalid task=a: expected I/N"),
        (
            ["source=.", "out=x", "data.shard_mb=0"],
            "data.shard_mb=0 is too small: expected at least 1",
        ),
        (
            ["source=.", "out=x", "data.quality=101"],
            "data.quality=101 is too large: expected at most 100",
        ),
        (["data.layout=imagenet"], "data.layout=imagenet: choose one of folder"),
        (["verify", "/nonexistent"], "holds no manifest.json"),
        (["info"], "shard info needs the URL"),
        (["gc", "/nonexistent"], "is not a sharded set"),
        (["gc", "/nonexistent", "older_than=1h"], "older_than=1h is less than 24h"),
        (["verify", "pipe://id"], "unknown storage pipe://"),
    ],
)
def test_invalid_input_gives_one_line_and_status_2(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert status == 2 and out == ""
    assert text in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_source_and_an_out_with_other_files_are_rejected_unchanged(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, f"source={tmp_path / 'empty'}", f"out={tmp_path / 'set'}")
    assert status == 2 and "no images at the source" in err
    assert not (tmp_path / "set").exists()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").write_text("Dear")
    status, _, err = run(capsys, f"source={photos}", f"out={theirs}")
    assert status == 2 and "is not empty and not this set" in err
    assert [p.name for p in theirs.iterdir()] == ["letter.txt"]


def test_verify_detects_a_damaged_byte_and_info_describes_the_set(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    run(capsys, f"source={photos}", f"out={out}")
    status, text, _ = run(capsys, "verify", out, "every_byte=true", "--json")
    assert status == 0 and json.loads(text)["checked"] == "every byte"
    status, text, _ = run(capsys, "info", out, "--json")
    assert status == 0
    assert sum(split["samples"] for split in json.loads(text)["splits"].values()) == 40
    tar = out / "train" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(bytes(data))
    assert run(capsys, "verify", out)[0] == 0
    status, _, err = run(capsys, "verify", out, "every_byte=true")
    assert status == 1 and "its sha256 differs" in err


def test_existing_tars_are_indexed_in_place(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    run(capsys, f"source={photos}", f"out={tmp_path / 'set'}", "data.holdout=0")
    theirs = tmp_path / "theirs"
    shutil.move(tmp_path / "set" / "train", theirs)
    status, text, _ = run(
        capsys,
        "data=wds",
        "data.holdout=0.3",
        f"source={theirs}",
        f"out={tmp_path / 'index'}",
        "--json",
    )
    splits = json.loads(text)["splits"]
    assert status == 0 and sum(splits.values()) == 40 and 4 < splits["val"] < 20
    assert open_manifest(str(tmp_path / "index")).kind == "external"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_signal_ends_with_75_and_the_same_command_resumes(
    photos: Path, tmp_path: Path, number: int
) -> None:
    words = [f"source={photos}", f"out={tmp_path / 'set'}", "data.shard_mb=1"]
    command = [sys.executable, "-m", "pipeline", "shard", *words]
    for i in range(40, 600):
        os.link(photos / f"{i % 40}.jpg", photos / f"{i}.jpg")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "shard 1/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    text = process.communicate()[1]
    assert process.returncode == 75
    assert "stopped on request" in text and "Traceback" not in text
    assert main(["shard", *words]) == 0


def test_gc_lists_and_deletes_only_on_request(
    capsys: pytest.CaptureFixture, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    run(capsys, f"source={photos}", f"out={out}")
    left = out / "train" / ".shard-000000.tar.0123456789abcdef.lacuna-tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 90_000,) * 2)
    status, text, _ = run(capsys, "gc", out)
    assert status == 0 and "1 left by killed writers (listed only" in text
    assert left.exists()
    status, text, _ = run(capsys, "gc", out, "delete=true")
    assert status == 0 and "(deleted)" in text and not left.exists()
    assert run(capsys, "verify", out, "every_byte=true")[0] == 0


@pytest.mark.parametrize("pattern", ["nothing", "x-{000..001}.tar"])
def test_missing_tars_give_one_line_and_the_formats_of_wds(
    capsys: pytest.CaptureFixture, tmp_path: Path, pattern: str
) -> None:
    words = ("data=wds", f"source={tmp_path / pattern}", f"out={tmp_path / 'index'}")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "Existing WebDataset tars" in err
    assert "has no .tar" in err or "x-000.tar does not exist" in err
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "words, text",
    [
        ("source={tmp} out=nosuch://bucket/set", "unknown storage nosuch://"),
        ("source={tmp}/from out={tmp}/other", "plan.json is not the plan of a sharded set"),
        ("data=wds source={tmp}/from out={tmp}/set task=1/4", "indexed by one process"),
    ],
)
def test_an_unusable_source_or_out_is_named_in_the_error(
    capsys: pytest.CaptureFixture, tmp_path: Path, words: str, text: str
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text("{}")
    status, _, err = run(capsys, *words.format(tmp=tmp_path).split())
    assert status == 2 and text in err.splitlines()[-1]


# Row 18
@pytest.mark.parametrize("words", ["shard", "shard --dry-run", "masks", "masks --dry-run",
                                   "submit shard cluster=local",
                                   "submit masks cluster=local"])  # fmt: skip
def test_a_source_in_a_bucket_is_rejected_before_anything_is_announced_or_queued(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main([*words.split(), "source=s3://bucket/x", "out=set"])
    shown = capsys.readouterr()
    assert status == 2 and "would" not in shown.out
    assert "source=s3://bucket/x: published files are read from a local disk" in shown.err
    assert list(tmp_path.iterdir()) == []


# Row 18
@pytest.mark.parametrize("layout", SOURCES)
def test_a_url_is_offered_as_source_where_it_is_read_and_only_there(layout: str) -> None:
    accepts = SOURCES[layout].offer.accepts
    assert ("URL" in accepts and "s3://" in accepts) == (layout == "wds")
