"""Tars that somebody else wrote: indexed where they lie, and not a byte of them changed."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards import external, hashed_stream, store
from shards.manifest import Manifest, open_manifest, read_index
from tests.support.sets import jpeg, smooth_image


def theirs(path: Path, members: dict[str, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(smooth_image(number)).save(sink, "PNG")
    return sink.getvalue()


def group(first: int, count: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members[f"a/{i:04d}.txt"] = b"a caption"
        members[f"a/{i:04d}.jpg"] = jpeg(smooth_image(i))
        members[f"a/{i:04d}.cls"] = f"{i % 5}".encode()
    return members


def index(source: str, out: Path, **how: object) -> Manifest:
    return external.write(str(out), "theirs", source, lambda _: None, **how).manifest  # type: ignore[arg-type]


def rows_of(manifest: Manifest, split: str = "train") -> list[dict]:
    return [row for shard in manifest.splits[split].shards
            for row in read_index(manifest, split, shard).to_pylist()]  # fmt: skip


def test_every_sample_is_found_where_webdataset_finds_it(tmp_path: Path) -> None:
    for number in range(3):
        theirs(tmp_path / "in" / f"{number}.tar", group(10 * number, 10))
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "in").iterdir()}
    manifest = index(str(tmp_path / "in"), tmp_path / "out")
    assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in before}
    assert manifest.kind == "external"
    assert not list((tmp_path / "out").rglob("*.tar"))
    urls = [shard.name for shard in manifest.splits["train"].shards]
    expected = list(webdataset.WebDataset(urls, shardshuffle=False))
    rows = rows_of(manifest)
    assert [row["key"] for row in rows] == [sample["__key__"] for sample in expected]
    tars = [store.read(url) for url in urls]
    for row, sample in zip(rows, expected):
        data = tars[row["shard"]][row["offset"] : row["offset"] + row["size"]]
        assert data == sample["jpg"]
        assert row["label"] == int(sample["cls"])
        assert (row["width"], row["height"], row["mode"]) == (40, 40, "RGB")
    assert len({row["sample_id"] for row in rows}) == 30
    for shard, tar in zip(manifest.splits["train"].shards, tars):
        assert (shard.bytes, shard.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_tar_format_with_long_names_and_other_letters_is_indexed(
    tmp_path: Path, form: int
) -> None:
    name = f"{'folder/' * 8}été.jpg" if form == tarfile.USTAR_FORMAT else f"{'x' * 180}/été.jpg"
    tar = theirs(tmp_path / "a.tar", {name: jpeg(smooth_image(1))}, format=form)
    (row,) = rows_of(index(str(tar), tmp_path / "out"))
    assert tar.read_bytes()[row["offset"] : row["offset"] + row["size"]] == jpeg(smooth_image(1))
    assert row["src"] == name


def test_pngs_and_rotated_jpegs_are_left_as_they_are_and_described(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray(smooth_image(1, 30, 50)).save(sink, "JPEG", exif=exif)
    tar = theirs(tmp_path / "a.tar", {"1.png": png(1), "2.jpeg": sink.getvalue()})
    one, two = rows_of(index(str(tar), tmp_path / "out"))
    assert (one["ext"], one["size"]) == ("png", len(png(1)))
    assert (two["width"], two["height"], two["orientation"]) == (50, 30, 6)


def test_splits_are_folders_in_a_pattern_too(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        theirs(tmp_path / "in" / split / "0.tar", group(0, count))
    for number, pattern in enumerate(("in", "in/{train,val}/0.tar")):
        manifest = index(str(tmp_path / pattern), tmp_path / f"out{number}")
        assert counts(manifest) == {"train": 3, "val": 2}


def counts(manifest: Manifest) -> dict[str, int]:
    return {name: split.samples for name, split in manifest.splits.items()}


PLACES = [f"places-{split}-00000{n}.tar" for split in ("train", "val", "test") for n in (0, 1)]


# Row 2
@pytest.mark.parametrize(
    ("tars", "source", "expected"),
    [
        (PLACES, "", {"train": 4, "val": 2, "test": 2}),
        (PLACES, "places-{train,val,test}-{000000..000001}.tar", {"train": 4, "val": 2, "test": 2}),
        (["imagenet1k-train-0.tar", "imagenet1k-validation-0.tar"], "", {"train": 2, "val": 1}),
        (["train2017/0.tar", "val2017/0.tar"], "", {"train": 2, "val": 1}),
        (["0.tar", "1.tar", "val/0.tar"], "", {"train": 2, "val": 1}),
        (["shards-train/0.tar", "shards-test/0.tar"], "", {"train": 2, "test": 1}),
        (["train_station-0.tar", "valley-0.tar"], "", {"train": 3}),
        (["val-0.tar"], "val-0.tar", {"val": 1}),
        (["val/0.tar"], "val", {"train": 1}),  # the folder that was chosen, as a whole
    ],
)  # fmt: skip
def test_tars_are_split_by_their_folders_and_names(
    tmp_path: Path, tars: list[str], source: str, expected: dict[str, int]
) -> None:
    for name in tars:
        theirs(tmp_path / "in" / name, group(0, 2 if name.startswith("train") else 1))
    if tars is PLACES:
        for name in PLACES[:2]:
            theirs(tmp_path / "in" / name, group(0, 2))
    if tars[0].startswith(("imagenet", "shards")):
        theirs(tmp_path / "in" / tars[0], group(0, 2))
    assert counts(index(str(tmp_path / "in" / source), tmp_path / "out")) == expected


# Row 2
@pytest.mark.parametrize(
    ("tars", "named"),
    [
        (["train/0.tar", "val_source/0.tar", "eval_source/0.tar"], "eval_source/, train/, val_so"),
        (["train-0.tar", "eval-0.tar"], "eval-0.tar, train-0.tar"),
        (["train-0.tar", "val-0.tar", "more.tar"], "more.tar, train-0.tar, val-0.tar"),
        (["train-images-0.tar", "val-masks-0.tar"], "train-images-0.tar, val-masks-0.tar"),
    ],
)
def test_tars_whose_split_is_unclear_are_refused_by_name(
    tmp_path: Path, tars: list[str], named: str
) -> None:
    for name in tars:
        theirs(tmp_path / "in" / name, group(0, 1))
    with pytest.raises(ValueError, match=named) as error:
        index(str(tmp_path / "in"), tmp_path / "out")
    assert "put their images into folders" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_tar_with_split_folders_inside_is_refused_and_tars_left_out_are_named(
    tmp_path: Path,
) -> None:
    image = jpeg(smooth_image(0))
    tar = theirs(tmp_path / "p.tar", {"photos/train/1.jpg": image, "photos/val/2.jpg": image})
    with pytest.raises(
        ValueError, match="p.tar .*ambiguous split names.*photos/train/, photos/val/"
    ):
        index(str(tar), tmp_path / "a")
    for name in ("train/0.tar", "val/0.tar", "spare/0.tar"):
        theirs(tmp_path / "in" / name, group(0, 1))
    lines: list[str] = []
    external.write(str(tmp_path / "b"), "theirs", str(tmp_path / "in"), lines.append)
    assert any("skipped" in line and "spare/ (1 tars)" in line for line in lines)


def test_a_broken_image_is_a_reject_and_too_many_end_the_run(tmp_path: Path) -> None:
    members = {**group(0, 9), "broken.jpg": jpeg(smooth_image(0))[:-20]}
    tar = theirs(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match="1 of 10 files rejected .1 corrupt, such as 'broken.jpg'"):
        index(str(tar), tmp_path / "out")
    manifest = index(str(tar), tmp_path / "out", max_reject_rate=0.2)
    assert manifest.splits["train"].samples == 9


def test_an_interrupted_indexing_goes_on_and_gives_the_same_set(tmp_path: Path) -> None:
    for number in range(3):
        theirs(tmp_path / "in" / f"{number}.tar", group(10 * number, 4))
    first = index(str(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "train" / "index" / "shard-000001.parquet").unlink()
    kept = (tmp_path / "out" / "train" / "index" / "shard-000000.parquet").stat().st_ino
    assert index(str(tmp_path / "in"), tmp_path / "out").digest == first.digest
    assert (tmp_path / "out/train/index/shard-000000.parquet").stat().st_ino == kept


def test_tars_that_changed_since_are_another_source(tmp_path: Path) -> None:
    theirs(tmp_path / "in" / "0.tar", group(0, 4))
    index(str(tmp_path / "in"), tmp_path / "out")
    theirs(tmp_path / "in" / "0.tar", group(0, 60))
    with pytest.raises(ValueError, match="was started with sizes="):
        index(str(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize(
    ("cut", "message"), [(2048, "truncated or damaged at"), (1100, "not a readable tar|truncated")]
)
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, cut: int, message: str) -> None:
    data = {f"{i}.jpg": b"\0" * 512 for i in range(4)}
    tar = theirs(tmp_path / "a.tar", data, format=tarfile.USTAR_FORMAT)
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(ValueError, match=message):
        index(str(tar), tmp_path / "out")


def test_tars_without_images_and_folders_without_tars_are_refused(tmp_path: Path) -> None:
    tar = theirs(tmp_path / "in" / "a.tar", {"1.txt": b"x"})
    with pytest.raises(ValueError, match="no image in any tar of the source"):
        index(str(tar), tmp_path / "out")
    with pytest.raises(ValueError, match="has no .tar"):
        index(str(tmp_path / "nowhere"), tmp_path / "out2")


def test_blocks_smaller_than_a_tar_give_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = theirs(tmp_path / "a.tar", group(0, 10))
    whole = index(str(tar), tmp_path / "a")
    monkeypatch.setattr(hashed_stream, "BLOCK", 4096)
    assert index(str(tar), tmp_path / "b").digest == whole.digest


@pytest.mark.s3
def test_tars_in_a_bucket_are_indexed_there(bucket: str, tmp_path: Path) -> None:
    tar = theirs(tmp_path / "a.tar", group(0, 5))
    store.upload(f"{bucket}/theirs/train/0.tar", tar)
    done = external.write(f"{bucket}/ours", "theirs", f"{bucket}/theirs", lambda _: None)
    again = open_manifest(f"{bucket}/ours")
    assert again.digest == done.manifest.digest
    assert again.splits["train"].shards[0].name == f"{bucket}/theirs/train/0.tar"
