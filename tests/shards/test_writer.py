"""A set is a pure function of its source and options, whoever writes it and however often."""

import hashlib
import io
import os
import signal
import tarfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from shards import store, writer
from shards.hygiene import Policy
from shards.manifest import Manifest, open_manifest, read_index
from shards.pack import PackedSample, Reject, content_hash
from shards.plan import Plan, Row, make_plan
from shards.sources import source
from shards.sources.files import Loader
from shards.writer import Finished, finalize, missing, write
from tests.support.sets import jpeg, sample, smooth_image

COUNT = 120


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures in class folders with names that repeat, hold dots or other letters, one bad."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        folder = root / ("a", "b.c", "été")[number % 3]
        folder.mkdir(exist_ok=True)
        (folder / f"{number // 3}.v1.jpg").write_bytes(jpeg(smooth_image(number, 64, 48)))
    (root / "a" / "0.v2.jpg").write_bytes(b"not an image")
    return root


def plan_of(place: Path, **options: object) -> Plan:
    return make_plan(
        "photos",
        "images",
        source("folder").entries(place, 0.2),
        seed=3,
        shard_bytes=40_000,
        options={**Policy().options(), **options},
    )


def loader(place: Path) -> Loader:
    return Loader(place if place.is_dir() else place.parent, Policy())


def build(out: Path, place: Path, **how: object) -> Finished:
    made = plan_of(place)
    for _ in write(str(out), made, loader(place), **how):  # type: ignore[arg-type]
        pass
    return finalize(str(out), made)


def tree(folder: Path) -> dict[str, str]:
    """Every file and its sha256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def built(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return build(tmp_path_factory.mktemp("set") / "out", photos)


def samples_of(manifest: Manifest):
    for split, entry in manifest.splits.items():
        for shard in entry.shards:
            tar = store.read(manifest.shard_url(split, shard))
            for row in read_index(manifest, split, shard).to_pylist():
                yield split, shard, tar, row


# --- what is written ------------------------------------------------------------------------------


def test_every_image_is_in_once_with_its_own_bytes(built: Finished, photos: Path) -> None:
    seen = {row["src"]: tar[row["offset"] : row["offset"] + row["size"]]
            for _, _, tar, row in samples_of(built.manifest)}  # fmt: skip
    there = {str(p.relative_to(photos)): p.read_bytes() for p in photos.rglob("*.v1.jpg")}
    assert seen == there
    assert sum(split.samples for split in built.manifest.splits.values()) == COUNT


def test_the_index_says_what_tarfile_finds(built: Finished) -> None:
    for split, entry in built.manifest.splits.items():
        for shard in entry.shards:
            rows = read_index(built.manifest, split, shard).to_pylist()
            with tarfile.open(built.manifest.shard_url(split, shard)) as tar:
                members = tar.getmembers()
                assert [m.name for m in members] == [f"{r['key']}.{r['ext']}" for r in rows]
                assert [(m.offset_data, m.size) for m in members] == [
                    (r["offset"], r["size"]) for r in rows
                ]
                for member, row in zip(members, rows):
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    assert zlib.crc32(data) == row["crc32"]
                    assert content_hash(data) == row["content_hash"]
                    assert (row["width"], row["height"], row["mode"]) == (48, 64, "RGB")
                    assert row["key"] == f"{row['sample_id']:09d}"


def test_a_member_costs_one_header_and_tells_nothing_of_the_machine(built: Finished) -> None:
    (shard, *_) = built.manifest.splits["train"].shards
    with tarfile.open(built.manifest.shard_url("train", shard)) as tar:
        for member in tar.getmembers():
            assert member.offset_data - member.offset == 512
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert member.uname == member.gname == ""
            assert member.pax_headers == {}


def test_the_manifest_holds_the_sha256_of_every_tar_and_index(built: Finished) -> None:
    for split, entry in built.manifest.splits.items():
        for shard in entry.shards:
            tar = store.read(built.manifest.shard_url(split, shard))
            index = store.read(built.manifest.index_url(split, shard))
            assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
            assert hashlib.sha256(index).hexdigest() == shard.index_sha256


def test_a_tar_opens_with_plain_webdataset(built: Finished) -> None:
    urls = [built.manifest.shard_url("train", s) for s in built.manifest.splits["train"].shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg"))
    assert len(read) == built.manifest.splits["train"].samples
    assert all(pixels.shape == (64, 48, 3) for (pixels,) in read)


def test_what_is_held_out_depends_on_the_bytes_alone(built: Finished, photos: Path) -> None:
    for split, _, tar, row in samples_of(built.manifest):
        data = tar[row["offset"] : row["offset"] + row["size"]]
        assert (split == "val") == (content_hash(data) < 0.2 * 2**64)


def test_rejects_are_listed_with_their_reasons(built: Finished) -> None:
    table = pq.read_table(f"{built.manifest.url}/rejects.parquet").to_pylist()
    assert [(row["src"], row["reason"]) for row in table] == [("a/0.v2.jpg", "format")]
    assert built.rejects == {"format": 1}


def test_pictures_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    for number in range(6):
        store.write(tmp_path / "in" / f"{number}.jpg", jpeg(smooth_image(number // 2)))
    assert build(tmp_path / "out", tmp_path / "in").duplicates == 3


# --- whoever writes it ----------------------------------------------------------------------------


def test_processes_and_tasks_change_no_byte(built: Finished, photos: Path, tmp_path: Path) -> None:
    expected = tree(Path(built.manifest.url))
    build(tmp_path / "workers", photos, workers=2)
    assert tree(tmp_path / "workers") == expected
    made = plan_of(photos)
    for index in (2, 0, 1):
        with pytest.raises(ValueError, match="shards are missing"):
            finalize(str(tmp_path / "tasks"), made)
        list(write(str(tmp_path / "tasks"), made, loader(photos), task=(index, 3)))
    finalize(str(tmp_path / "tasks"), made)
    assert tree(tmp_path / "tasks") == expected


def test_a_tar_and_a_zip_of_a_folder_make_the_set_of_the_folder(
    built: Finished, photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, arcname=".")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in photos.rglob("*.jpg"):
            archive.write(path, path.relative_to(photos))
    for name in ("photos.tar", "photos.zip"):
        made = build(tmp_path / f"of-{name}", tmp_path / name)
        assert made.manifest.digest == built.manifest.digest


def test_two_writers_of_one_shard_are_harmless(
    built: Finished, photos: Path, tmp_path: Path
) -> None:
    made = plan_of(photos)
    first = write(str(tmp_path / "out"), made, loader(photos))
    next(first)
    list(write(str(tmp_path / "out"), made, loader(photos)))
    list(first)
    finalize(str(tmp_path / "out"), made)
    assert tree(tmp_path / "out") == tree(Path(built.manifest.url))


# --- stopped and gone on --------------------------------------------------------------------------


def test_until_it_is_finished_there_is_no_set_to_read(photos: Path, tmp_path: Path) -> None:
    made, out = plan_of(photos), str(tmp_path / "out")
    for _ in write(out, made, loader(photos)):
        with pytest.raises(ValueError, match="no finished sharded set"):
            open_manifest(out)
    finalize(out, made)
    assert open_manifest(out).splits["train"].samples


def test_a_shard_that_has_its_index_is_not_written_again(
    built: Finished, photos: Path, tmp_path: Path
) -> None:
    made, out = plan_of(photos), tmp_path / "out"
    half = write(str(out), made, loader(photos))
    next(half), next(half)
    half.close()
    before = {path: path.stat().st_ino for path in out.rglob("shard-*")}
    assert len(missing(str(out), made)) == len(made.shards()) - 2
    records = list(write(str(out), made, loader(photos)))
    assert records[-1].shards == records[-1].of_shards == len(made.shards()) - 2
    assert {path: path.stat().st_ino for path in before} == before
    finalize(str(out), made)
    assert tree(out) == tree(Path(built.manifest.url))


@pytest.mark.parametrize("lost", ["shard-000000.tar", "index/shard-000000.parquet"])
def test_a_shard_of_which_one_file_is_gone_is_written_again(
    built: Finished, photos: Path, tmp_path: Path, lost: str
) -> None:
    build(tmp_path / "out", photos)
    (tmp_path / "out" / "train" / lost).unlink()
    build(tmp_path / "out", photos)
    assert tree(tmp_path / "out") == tree(Path(built.manifest.url))


def test_a_tar_that_is_not_its_indexs_is_named(photos: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", photos)
    with open(tmp_path / "out" / "train" / "shard-000000.tar", "ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ValueError, match="shard-000000.parquet does not belong to its tar"):
        finalize(str(tmp_path / "out"), plan_of(photos))


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_a_line_and_the_next_run_goes_on(
    photos: Path, tmp_path: Path, built: Finished
) -> None:
    made, out = plan_of(photos), str(tmp_path / "out")
    with pytest.raises(RuntimeError, match="a shard writer was killed"):
        list(write(out, made, _Suicidal(loader(photos)), workers=2))
    list(write(out, made, loader(photos)))
    finalize(out, made)
    assert tree(tmp_path / "out") == tree(Path(built.manifest.url))


class _Suicidal:
    """Kills the process that loads the 30th sample."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def __call__(self, row: Row) -> PackedSample | Reject:
        if row.sample_id == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(row)


# --- what can be wrong ----------------------------------------------------------------------------


def test_too_many_rejects_end_the_run_with_counts_and_examples(tmp_path: Path) -> None:
    for number in range(20):
        data = jpeg(smooth_image(number)) if number % 2 else (b"" if number % 4 else b"text")
        store.write(tmp_path / "in" / f"{number}.jpg", data)
    out = tmp_path / "out"
    with pytest.raises(ValueError) as error:
        build(out, tmp_path / "in", max_reject_rate=0.1)
    message = str(error.value)
    assert "of 20 files rejected" in message and "max_reject_rate=0.1" in message
    assert "5 empty, such as '18.jpg': no bytes" in message and "\n" not in message
    assert not (out / "manifest.json").exists()
    made = plan_of(tmp_path / "in")
    list(write(str(out), made, loader(tmp_path / "in"), max_reject_rate=0.5))
    finished = finalize(str(out), made, max_reject_rate=0.5)
    assert finished.rejects == {"format": 5, "empty": 5}


def test_the_rate_is_held_at_the_end_too(tmp_path: Path) -> None:
    store.write(tmp_path / "in" / "a.jpg", jpeg(smooth_image(0)))
    store.write(tmp_path / "in" / "b.jpg", b"text")
    made = plan_of(tmp_path / "in")
    list(write(str(tmp_path / "out"), made, loader(tmp_path / "in"), max_reject_rate=0.5))
    with pytest.raises(ValueError, match="1 of 2 files rejected"):
        finalize(str(tmp_path / "out"), made, max_reject_rate=0.4)


@pytest.mark.parametrize("change", ["removed", "grown"])
def test_a_source_that_changed_since_the_plan_is_named(tmp_path: Path, change: str) -> None:
    target = tmp_path / "in" / "5.jpg"
    for number in range(10):
        store.write(tmp_path / "in" / f"{number}.jpg", jpeg(smooth_image(number)))
    made = plan_of(tmp_path / "in")
    target.unlink() if change == "removed" else target.write_bytes(target.read_bytes() + b"x")
    with pytest.raises(ValueError, match="5.jpg: missing or changed since the set was planned"):
        list(write(str(tmp_path / "out"), made, loader(tmp_path / "in")))


NAMES = [
    "../../outside.jpg",
    "/absolute.jpg",
    "a/../b/up.jpg",
    "img.v1.final.jpg",
    "two\nlines.jpg",
    "été/日本 語.jpg",
    "pipe:id.jpg",
    "%2e%2e/x.jpg",
    "=cmd().jpg",
]


def test_whatever_a_file_is_called_its_member_is_a_number_and_nothing_is_written_outside(
    tmp_path: Path,
) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for number, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            data = jpeg(smooth_image(number))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = set(tmp_path.rglob("*"))
    made = make_plan(
        "odd", "images", source("folder").entries(tmp_path / "odd.tar", 0.0),
        seed=0, shard_bytes=10**6, options={},
    )  # fmt: skip
    out = tmp_path / "set"
    list(write(str(out), made, loader(tmp_path / "odd.tar")))
    manifest = finalize(str(out), made).manifest
    rows = [row for *_, row in samples_of(manifest)]
    assert sorted(row["src"] for row in rows) == sorted(NAMES)
    with tarfile.open(manifest.shard_url("train", manifest.splits["train"].shards[0])) as tar:
        assert [m.name for m in tar] == [f"{number:09d}.jpg" for number in range(len(NAMES))]
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(out) for path in new)


def test_a_name_that_is_not_utf8_is_read_and_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.jpg"), "wb") as file:
        file.write(jpeg(smooth_image(1)))
    manifest = build(tmp_path / "out", folder).manifest
    assert [row["src"] for *_, row in samples_of(manifest)] == ["caf\\xe9.jpg"]


def test_progress_counts_up_to_everything_with_a_rate_and_time_left(
    photos: Path, tmp_path: Path
) -> None:
    records = list(write(str(tmp_path / "out"), plan_of(photos), loader(photos)))
    assert [r.shards for r in records] == list(range(1, len(records) + 1))
    last = records[-1]
    assert (last.images, last.rejected, last.of_images) == (COUNT, 1, COUNT + 1)
    assert last.rate > 0 and last.seconds_left == 0
    assert records[0].seconds_left > 0


# --- sets that are made ---------------------------------------------------------------------------


def made_samples(count: int = 10):
    for number in range(count):
        yield sample(f"{number}", jpeg(smooth_image(number)), 40, 40)


def make(out: Path, **options: object) -> Finished:
    return writer.write_set(
        str(out), "made", "images", {"train": made_samples(), "val": made_samples(3)},
        options=options, per_shard=4,
    )  # fmt: skip


def test_a_made_set_has_its_samples_in_order_and_ids_that_count_over_its_splits(
    tmp_path: Path,
) -> None:
    manifest = make(tmp_path, seed=1).manifest
    rows = [(split, row["sample_id"], row["src"]) for split, _, _, row in samples_of(manifest)]
    assert rows == [("train", i, f"{i}") for i in range(10)] + [
        ("val", 10 + i, f"{i}") for i in range(3)
    ]
    assert Counter(split for split, *_ in rows) == {"train": 10, "val": 3}
    assert [shard.samples for shard in manifest.splits["train"].shards] == [4, 4, 2]


def test_a_made_set_is_the_same_after_an_interruption(tmp_path: Path) -> None:
    make(tmp_path / "a", seed=1)
    make(tmp_path / "b", seed=1)
    for lost in ("manifest.json", "rejects.parquet", "train/index/shard-000001.parquet"):
        (tmp_path / "b" / lost).unlink()
    make(tmp_path / "b", seed=1)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with pytest.raises(ValueError, match="was started with seed=1, now seed=2"):
        make(tmp_path / "b", seed=2)


def test_a_finished_made_set_is_not_made_again(tmp_path: Path) -> None:
    first = make(tmp_path, seed=1)

    def never():
        raise AssertionError("asked for a sample")
        yield

    again = writer.write_set(
        str(tmp_path), "made", "images", {"train": never()}, options={"seed": 1}, per_shard=4
    )
    assert again.manifest.digest == first.manifest.digest


def test_content_hash_is_blake2b_of_eight_bytes() -> None:
    expected = np.frombuffer(hashlib.blake2b(b"abc", digest_size=8).digest(), "<u8")[0]
    assert content_hash(b"abc") == expected


def test_an_empty_tar_is_still_a_tar() -> None:
    from shards.pack import pack

    packed = pack("images", 0, "", [(0, Reject("x", "empty", ""))])
    assert packed.samples == 0 and len(packed.rejects) == 1
    with tarfile.open(fileobj=io.BytesIO(packed.tar)) as tar:
        assert tar.getmembers() == []
