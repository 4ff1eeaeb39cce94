"""Each publisher's layout, as folders and inside their archives, gives the same entries."""

import contextlib
import os
import shutil
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from shards import external, hashed_stream, mask_import
from shards.hygiene import Policy
from shards.pack import Reject
from shards.plan import Entry, Row, make_plan
from shards.sources import SOURCES, files, source
from shards.sources.files import Loader, list_files, read_file
from shards.sources.published import hold_out
from tests.support.sets import smooth_image


def touch(root: Path, *names: str, text: str | None = None) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if text is None else text)


def tarred(folder: Path, *tops: str, name: str, into: Path | None = None) -> Path:
    path = (into or folder) / name
    with tarfile.open(path, "w") as tar:
        for top in tops:
            tar.add(folder / top, arcname=top)
    return path


def zipped(folder: Path, *tops: str, name: str, into: Path | None = None) -> Path:
    path = (into or folder) / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for top in tops:
            for file in sorted((folder / top).rglob("*")):
                archive.write(file, file.relative_to(folder))
    return path


def listed(layout: str, place: Path, holdout: float = 0.0) -> list[Entry]:
    return sorted(source(layout).entries(place, holdout))


def said(entries: list[Entry]) -> set[tuple[str, str, int]]:
    """What matters of entries, wherever they lie: split, name, label."""
    return {(e.split, e.src.decode(), e.label) for e in entries}


def contents(entries: list[Entry], place: Path) -> set[str]:
    root = place if place.is_dir() else place.parent
    return {
        read_file(root, Row(0, e.src, e.size, e.label, e.archive, e.offset)).decode()
        for e in entries
    }


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_read_from_a_folder_a_tar_and_a_zip_alike(tmp_path: Path) -> None:
    names = ("a/1.jpg", "a/b/2.jpg", "ü/x y.png")
    touch(tmp_path / "in", *names)
    (tmp_path / "in" / "a" / "empty.jpg").write_bytes(b"")
    tar = tarred(tmp_path / "in", "a", "ü", name="in.tar", into=tmp_path)
    deflated = zipped(tmp_path / "in", "a", "ü", name="in.zip", into=tmp_path)
    for place in (tmp_path / "in", tar, deflated):
        found = {f.path.decode(): f for f in list_files(place) if f.size}
        assert set(found) == set(names)
        root, archive = (place, "") if place.is_dir() else (tmp_path, place.name)
        for name, file in found.items():
            row = Row(0, file.path, file.size, -1, archive, file.offset)
            assert read_file(root, row).decode() == name


def test_a_zip_member_that_inflates_beyond_its_promise_is_refused_before_it_fills_the_memory(
    tmp_path: Path,
) -> None:
    place = tmp_path / "bomb.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(200_000_000))
    written = bytearray(place.read_bytes())
    directory = written.rindex(b"PK\x01\x02")
    written[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    place.write_bytes(written)
    (found,) = list_files(place)
    tracemalloc.start()
    with pytest.raises(ValueError, match="missing or changed"):
        read_file(tmp_path, Row(0, found.path, found.size, -1, "bomb.zip", found.offset))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Row 11
def test_a_file_larger_than_any_image_is_rejected_unread(tmp_path: Path) -> None:
    with open(tmp_path / "film.jpg", "wb") as file:
        file.truncate(50 << 30)  # sparse
    (found,) = list_files(tmp_path)
    row = Row(0, found.path, found.size, -1, "", found.offset)
    rejected = Loader(tmp_path, Policy())(row)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "too_large" and f"{50 << 30} bytes" in rejected.detail


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# Row 16
@pytest.mark.parametrize("locked", ["train/secret", "val", "."])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_is_named(locked: str, mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to others
        root = Path(name)
        root.chmod(0o755)
        touch(root, "set/train/1.jpg", "set/train/secret/2.jpg", "set/val/3.jpg")
        closed = root / "set" / locked
        closed.chmod(mode)
        with as_nobody(), pytest.raises(ValueError, match="cannot be read .Permission") as error:
            listed("folder", root / "set")
        closed.chmod(0o755)
        assert str(error.value).split(":")[0].startswith(str(closed))


LARGE = 40_000_000


def large_source(root: Path, form: str) -> Path:
    """Two photographs and, between them, a file of LARGE bytes."""
    touch(root / "in", "a.jpg", "c.jpg")
    with open(root / "in" / "b.jpg", "wb") as file:
        file.truncate(LARGE)
    if form == "folder":
        return root / "in"
    return Path(shutil.make_archive(str(root / "packed"), form, root / "in"))


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, external):
        monkeypatch.setattr(module, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(hashed_stream, "BLOCK", 65536)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < LARGE / 4
    finally:
        tracemalloc.stop()


# Row 11
@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_no_reader_of_a_source_loads_a_file_larger_than_any_image(
    tmp_path: Path, small_limit: None, form: str
) -> None:
    place = large_source(tmp_path, form)
    root = place if place.is_dir() else place.parent
    with bounded_memory():
        made = sorted(source("folder").entries(place, 0.999))  # reads all to hold some out
        assert [(e.src, e.split) for e in made] == [
            (b"b.jpg", "train"), (b"a.jpg", "val"), (b"c.jpg", "val")]  # fmt: skip
        for entry in made:
            row = Row(0, entry.src, entry.size, -1, entry.archive, entry.offset)
            loaded = Loader(root, Policy())(row)
            assert isinstance(loaded, Reject)
            assert loaded.reason == ("too_large" if entry.size == LARGE else "format")
        with pytest.raises(ValueError, match=": 40000000 bytes, above"):
            mask_import.open_source(str(place)).digest()


# Row 11
@pytest.mark.parametrize("ext", ["npy", "jpg", "json", "cls"])
def test_indexing_tars_loads_images_and_labels_only(
    tmp_path: Path, small_limit: None, ext: str
) -> None:
    touch(tmp_path / "in", "0.txt")
    (tmp_path / "in" / "1.png").write_bytes(cv2.imencode(".png", smooth_image(1))[1].tobytes())
    name = f"2.{ext}" if ext == "jpg" else f"1.{ext}"
    with open(tmp_path / "in" / name, "wb") as file:
        file.truncate(LARGE)
    tar = shutil.make_archive(str(tmp_path / "packed"), "tar", tmp_path / "in")
    import pandas  # noqa: F401  (pyarrow would, inside the measurement)

    with bounded_memory():
        done = external.write(str(tmp_path / "out"), "x", tar, lambda _: None, 0.5)
    assert done.manifest.splits["train"].samples == 1
    assert done.rejects == ({"too_large": 1} if ext == "jpg" else {})


def test_a_zip_written_as_a_stream_is_read_though_its_local_headers_hold_no_sizes(
    tmp_path: Path,
) -> None:
    class Unseekable:
        def __init__(self, file) -> None:
            self.write, self.flush = file.write, file.flush

    with (
        open(tmp_path / "s.zip", "wb") as file,
        zipfile.ZipFile(Unseekable(file), "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("a.jpg", b"x" * 200_000)
    (found,) = list_files(tmp_path / "s.zip")
    assert (
        read_file(tmp_path, Row(0, b"a.jpg", 200_000, -1, "s.zip", found.offset)) == b"x" * 200_000
    )


def test_hidden_files_and_what_macos_leaves_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", "__MACOSX/._a.jpg", ".git/c.jpg", "notes.txt", "D.JPEG")
    assert [e.src for e in listed("folder", tmp_path)] == [b"D.JPEG", b"a.jpg"]


def test_a_link_back_to_a_folder_above_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert [e.src for e in listed("folder", tmp_path)] == [b"1.jpg"]


@pytest.mark.parametrize(
    ("cut", "zeroed", "said"),
    [
        (2048, None, "truncated or damaged at byte 2048"),  # between two members
        (700, None, "not a readable tar"),  # in a payload
        (1124, None, "truncated or damaged at byte 1024"),  # in a header
        (0, None, "not a readable tar"),
        (None, slice(1024, 1536), "truncated or damaged at byte 1024"),  # a whole header
        (None, slice(1172, 1178), "truncated or damaged at byte 1024"),  # its checksum
    ],
)
def test_a_tar_that_is_cut_or_damaged_is_refused_and_never_half_listed(
    tmp_path: Path, cut: int | None, zeroed: slice | None, said: str
) -> None:
    touch(tmp_path, *(f"in/{i}.jpg" for i in range(5)))
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(5):  # 512 bytes of header and 512 of payload each
            tar.add(tmp_path / "in" / f"{i}.jpg", arcname=f"{i}.jpg")
    data = bytearray((tmp_path / "in.tar").read_bytes())
    if zeroed is not None:
        data[zeroed] = bytes(zeroed.stop - zeroed.start)
    (tmp_path / "in.tar").write_bytes(bytes(data[:cut]))
    with pytest.raises(ValueError, match=said):
        list(list_files(tmp_path / "in.tar"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gone", "does not exist"),
        ("x.tar.gz", "decompress it"),
        ("x.zip", "not a readable zip"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    if name != "gone":
        (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=text) as error:
        list(list_files(tmp_path / name))
    assert "\n" not in str(error.value)


# --- folder ---------------------------------------------------------------------------------------


def test_split_folders_are_splits_and_images_beside_them_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "validation/2.jpg", "Test/3.jpg", "4.jpg", "other/5.jpg")
    assert said(listed("folder", tmp_path, 0.5)) == {
        ("train", "train/a/1.jpg", -1),
        ("val", "validation/2.jpg", -1),
        ("test", "Test/3.jpg", -1),
    }


def test_a_val_without_a_train_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "val/1.jpg")
    with pytest.raises(ValueError, match="has val/ but no train/"):
        listed("folder", tmp_path)


def test_about_the_share_asked_for_is_held_out_and_copies_stay_together(tmp_path: Path) -> None:
    for i in range(1000):
        touch(tmp_path, f"{i}.jpg", f"copies/{i}.jpg", text=f"content {i}")
    splits: dict[str, set[str]] = {}
    for entry in listed("folder", tmp_path, 0.1):
        splits.setdefault(entry.src.rsplit(b"/", 1)[-1].decode(), set()).add(entry.split)
    assert all(len(found) == 1 for found in splits.values())
    held = sum(found == {"val"} for found in splits.values())
    assert 70 <= held <= 130  # 100 expected; four standard deviations are 38


def test_a_new_image_moves_no_other(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.jpg" for i in range(100)))
    before = {e.src: e.split for e in listed("folder", tmp_path, 0.3)}
    touch(tmp_path, *(f"new{i}.jpg" for i in range(50)))
    after = {e.src: e.split for e in listed("folder", tmp_path, 0.3)}
    assert before.items() <= after.items()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"data.holdout={share}"):
        list(hold_out([], tmp_path, share))


# --- Places365 ------------------------------------------------------------------------------------

CATEGORIES = "/a/airfield 0\n/a/apartment_building/outdoor 8\n/c/canyon 81\n"
TRAIN = ("a/airfield/00000001.jpg", "a/apartment_building/outdoor/00000001.jpg",
         "c/canyon/00000001.jpg", "c/canyon/00000002.jpg")  # fmt: skip
VAL = "Places365_val_00000001.jpg 81\nPlaces365_val_00000002.jpg 0\nPlaces365_val_00000003.jpg 8\n"


@pytest.fixture(params=["large", "256"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    root, size = tmp_path / "places", request.param
    touch(root, *(f"data_{size}/{name}" for name in TRAIN))
    touch(root, *(f"val_{size}/{line.split()[0]}" for line in VAL.splitlines()))
    touch(root, *(f"test_{size}/Places365_test_0000000{i}.jpg" for i in (1, 2)))
    touch(root / "lists", "categories_places365.txt", text=CATEGORIES)
    touch(root / "lists", "places365_val.txt", text=VAL)
    return root, size


def expected(size: str) -> set[tuple[str, str, int]]:
    return {
        ("train", f"data_{size}/a/airfield/00000001.jpg", 0),
        ("train", f"data_{size}/a/apartment_building/outdoor/00000001.jpg", 8),
        ("train", f"data_{size}/c/canyon/00000001.jpg", 81),
        ("train", f"data_{size}/c/canyon/00000002.jpg", 81),
        ("val", f"val_{size}/Places365_val_00000001.jpg", 81),
        ("val", f"val_{size}/Places365_val_00000002.jpg", 0),
        ("val", f"val_{size}/Places365_val_00000003.jpg", 8),
        ("test", f"test_{size}/Places365_test_00000001.jpg", -1),
        ("test", f"test_{size}/Places365_test_00000002.jpg", -1),
    }


def as_published(root: Path, size: str, into: Path, variant: str = "standard") -> Path:
    """The same download, still in the publisher's tars."""
    into.mkdir()
    tarred(root, f"data_{size}", name=f"train_{size}_places365{variant}.tar", into=into)
    for split in ("val", "test"):
        tarred(root, f"{split}_{size}", name=f"{split}_{size}.tar", into=into)
    tarred(root, "lists", name=f"filelist_places365-{variant}.tar", into=into)
    return into


def test_places365_is_read_unpacked(places: tuple[Path, str]) -> None:
    root, size = places
    assert said(listed("places365_standard", root)) == expected(size)


@pytest.mark.parametrize("variant", ["standard", "challenge"])
def test_places365_is_read_from_its_tars(
    places: tuple[Path, str], tmp_path: Path, variant: str
) -> None:
    root, size = places
    packed = as_published(root, size, tmp_path / "packed", variant)
    found = listed(f"places365_{variant}", packed)
    assert said(found) == expected(size)
    assert contents(found, packed) == {name for _, name, _ in expected(size)}


def test_one_of_its_tars_can_be_the_source_and_val_is_then_held_out(
    places: tuple[Path, str], tmp_path: Path
) -> None:
    root, size = places
    tar = as_published(root, size, tmp_path / "packed") / f"train_{size}_places365standard.tar"
    assert {e.split for e in listed("places365_standard", tar)} == {"train"}
    assert Counter(e.split for e in listed("places365_standard", tar, 0.999)) == {"val": 4}


def test_labels_come_from_the_train_list_where_there_are_no_categories(
    places: tuple[Path, str],
) -> None:
    root, size = places
    (root / "lists" / "categories_places365.txt").unlink()
    lines = "/a/airfield/00000001.jpg 0\n/a/apartment_building/outdoor/00000001.jpg 8\n"
    lines += "/c/canyon/00000001.jpg 81\n"
    touch(root, "places365_train_standard.txt", text=lines)
    assert said(listed("places365_standard", root)) == expected(size)


def test_without_any_list_there_are_no_labels(places: tuple[Path, str]) -> None:
    root, size = places
    for path in (root / "lists").iterdir():
        path.unlink()
    assert {label for _, _, label in said(listed("places365_standard", root))} == {-1}


def test_a_flat_data_256_takes_its_labels_from_the_list_by_file_name(tmp_path: Path) -> None:
    touch(tmp_path, "data_256/one.jpg", "data_256/two.jpg", "data_256/new.jpg")
    touch(tmp_path, "places365_train_standard.txt", text="one.jpg 5\ntwo.jpg 7\n")
    assert said(listed("places365_standard", tmp_path)) == {
        ("train", "data_256/one.jpg", 5),
        ("train", "data_256/two.jpg", 7),
        ("train", "data_256/new.jpg", -1),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_the_easyformat_has_its_splits_and_classes_as_folders(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "in"
    names = ("train/airfield/1.jpg", "train/apartment_building-outdoor/1.jpg", "val/canyon/2.jpg")
    touch(root, *(f"places365_standard/{name}" for name in names))
    if packed:
        place = tmp_path / "packed"
        place.mkdir()
        tarred(root, "places365_standard", name="places365standard_easyformat.tar", into=place)
        root = place
    touch(root, "categories_places365.txt", text=CATEGORIES)
    assert said(listed("places365_standard", root)) == {
        ("train", "places365_standard/train/airfield/1.jpg", 0),
        ("train", "places365_standard/train/apartment_building-outdoor/1.jpg", 8),
        ("val", "places365_standard/val/canyon/2.jpg", 81),
    }
    assert {name for _, name, _ in said(listed("places365_canyon", root))} == {
        "places365_standard/val/canyon/2.jpg"
    }


def test_canyon_is_that_category_of_train_and_val(places: tuple[Path, str], tmp_path: Path) -> None:
    root, size = places
    for place in (root, as_published(root, size, tmp_path / "packed")):
        assert said(listed("places365_canyon", place)) == {
            ("train", f"data_{size}/c/canyon/00000001.jpg", 81),
            ("train", f"data_{size}/c/canyon/00000002.jpg", 81),
            ("val", f"val_{size}/Places365_val_00000001.jpg", 81),
        }


def test_what_canyon_holds_out_is_no_val_which_the_paper_tests_on(tmp_path: Path) -> None:
    touch(tmp_path, *(f"data_256/c/canyon/{i:08d}.jpg" for i in range(100)), "val_256/v.jpg")
    touch(tmp_path, "places365_val.txt", text="v.jpg 81\n")
    found = listed("places365_canyon", tmp_path, 0.3)
    splits = Counter(entry.split for entry in found)
    assert splits["val"] == 1 and splits["train"] + splits["holdout"] == 100
    assert 12 <= splits["holdout"] <= 48  # 30 expected; four standard deviations are 18


def test_canyon_of_a_flat_data_256_is_told_by_the_training_list(tmp_path: Path) -> None:
    touch(tmp_path, "data_256/one.jpg", "data_256/two.jpg", "val_256/v.jpg", "val_256/w.jpg")
    touch(tmp_path, "places365_val.txt", text="v.jpg 81\nw.jpg 7\n")
    with pytest.raises(ValueError, match=r"places365_train_standard\.txt"):
        listed("places365_canyon", tmp_path)
    touch(tmp_path, "places365_train_standard.txt", text="one.jpg 5\ntwo.jpg 81\n")
    assert said(listed("places365_canyon", tmp_path)) == {
        ("train", "data_256/two.jpg", 81),
        ("val", "val_256/v.jpg", 81),
    }


def test_canyon_without_the_list_that_tells_val_apart_is_refused(
    places: tuple[Path, str],
) -> None:
    root, _ = places
    (root / "lists" / "places365_val.txt").unlink()
    with pytest.raises(ValueError, match="does not contain places365_val.txt"):
        listed("places365_canyon", root)


def test_two_resolutions_in_one_folder_are_refused(places: tuple[Path, str]) -> None:
    root, size = places
    touch(root, f"data_{'256' if size == 'large' else 'large'}/a/airfield/1.jpg")
    with pytest.raises(ValueError, match="contains large and 256"):
        listed("places365_standard", root)


def test_a_list_with_a_broken_line_is_named_with_its_number(places: tuple[Path, str]) -> None:
    root, _ = places
    touch(root / "lists", "places365_val.txt", text=VAL + "Places365_val_00000004.jpg\n")
    with pytest.raises(ValueError, match="places365_val.txt, line 4"):
        listed("places365_standard", root)


# --- CelebA ---------------------------------------------------------------------------------------

PARTITION = "000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n"
FACES = {
    ("train", "img_align_celeba/000001.jpg", -1),
    ("train", "img_align_celeba/000002.jpg", -1),
    ("val", "img_align_celeba/000003.jpg", -1),
    ("test", "img_align_celeba/000004.jpg", -1),
}


@pytest.mark.parametrize("form", ["folder", "zip", "zip as source"])
@pytest.mark.parametrize("where", ["list_eval_partition.txt", "Eval/list_eval_partition.txt"])
def test_celeba_is_split_by_its_partition_list(tmp_path: Path, form: str, where: str) -> None:
    root = tmp_path / "celeba"
    touch(root, *(name for _, name, _ in FACES))
    place = root
    if form != "folder":
        place = tmp_path / "packed"
        place.mkdir()
        zipped(root, "img_align_celeba", name="img_align_celeba.zip", into=place)
    touch(place, where, text=PARTITION)
    if form == "zip as source":
        place /= "img_align_celeba.zip"
    found = listed("celeba", place)
    assert said(found) == FACES
    assert contents(found, place) == {name for _, name, _ in FACES}


def test_musicals_celeba_trains_on_train_and_val_and_never_on_test(tmp_path: Path) -> None:
    names = [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 1201)]
    touch(tmp_path, *names)
    split = {name: 0 if i < 800 else 1 if i < 1000 else 2 for i, name in enumerate(names)}
    lines = "".join(f"{Path(name).name} {number}\n" for name, number in split.items())
    touch(tmp_path, "list_eval_partition.txt", text=lines)
    whole = Counter(e.split for e in listed("celeba_trainval", tmp_path))
    assert whole == {"train": 1000, "test": 200}
    held = listed("celeba_trainval", tmp_path, 0.1)
    counts = Counter(e.split for e in held)
    assert counts["test"] == 200 and 60 < counts["val"] < 140 and counts.total() == 1200
    published = {split[e.src.decode()] for e in held if e.split == "val"}
    assert published == {0, 1}  # faces of both
    assert {split[e.src.decode()] for e in held if e.split == "test"} == {2}


# Row 15
def test_a_list_with_commas_and_a_heading_is_read_too(tmp_path: Path) -> None:
    touch(tmp_path, *(name for _, name, _ in FACES))
    text = "image_id,partition\n" + PARTITION.replace(" ", ",")
    touch(tmp_path, "list_eval_partition.txt", text=text)
    assert said(listed("celeba", tmp_path)) == FACES


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "does not contain list_eval_partition.txt"),
        ("000001.jpg 0\n000002.jpg 3\n", "line 2"),
        ("000001.jpg 0\n", "is not in list_eval_partition.txt"),
    ],
)
def test_celeba_without_its_list_or_with_another_is_refused(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    touch(tmp_path, *(name for _, name, _ in FACES))
    if text is not None:
        touch(tmp_path, "list_eval_partition.txt", text=text)
    with pytest.raises(ValueError, match=complaint):
        listed("celeba", tmp_path)


KAGGLE = "image_id,partition\n000001.jpg,0\n000002.jpg,0\n000003.jpg,1\n000004.jpg,2\n"


def celeba_as(form: str, root: Path) -> Path:
    """CelebA as its publisher's drive, as Kaggle, and as torchvision lay it out."""
    faces = [f"00000{i}.jpg" for i in (1, 2, 3, 4)]
    if form.startswith("Kaggle"):
        touch(root / "k", *(f"img_align_celeba/img_align_celeba/{face}" for face in faces))
        touch(root / "k", "list_attr_celeba.csv", text="image_id,Smiling\n000001.jpg,1\n")
        touch(root / "k", "list_eval_partition.csv", text=KAGGLE)
        if form == "Kaggle's zip":
            return Path(shutil.make_archive(str(root / "archive"), "zip", root / "k"))
        return root / "k"
    text = KAGGLE.split("\n", 1)[1].replace(",", " ")
    touch(root / "CelebA", *(f"Img/img_align_celeba/{face}" for face in faces))
    touch(root / "CelebA", "Eval/list_eval_partition.txt", text=text)
    touch(root / "CelebA", "Anno/list_attr_celeba.txt", text="4\n")
    if form == "the drive, zipped images":
        zipped(root / "CelebA" / "Img", "img_align_celeba", name="img_align_celeba.zip")
        shutil.rmtree(root / "CelebA" / "Img" / "img_align_celeba")
    if form == "a folder above torchvision's":
        shutil.move(root / "CelebA" / "Img", root / "celeba")
        shutil.move(root / "CelebA" / "Eval" / "list_eval_partition.txt", root / "celeba")
        return root
    return root / "CelebA"


# Row 15
@pytest.mark.parametrize(
    "form",
    [
        "Kaggle, unpacked",
        "Kaggle's zip",
        "the drive, unpacked images",
        "the drive, zipped images",
        "a folder above torchvision's",
    ],
)
def test_celeba_is_read_as_its_copies_are_laid_out(tmp_path: Path, form: str) -> None:
    place = celeba_as(form, tmp_path)
    found = listed("celeba", place)
    names = {(entry.split, entry.src.rsplit(b"/", 1)[-1]) for entry in found}
    assert len(found) == 4 and names == {
        ("train", b"000001.jpg"),
        ("train", b"000002.jpg"),
        ("val", b"000003.jpg"),
        ("test", b"000004.jpg"),
    }
    assert {text.rsplit("/", 1)[-1] for text in contents(found, place)} == {
        f"00000{i}.jpg" for i in (1, 2, 3, 4)
    }
    if "Kaggle" not in form:
        assert said(found) == FACES


# --- CelebA-HQ ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thirty_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hq")
    with zipfile.ZipFile(root / "CelebAMask-HQ.zip", "w") as archive:
        for i in range(30_000):
            archive.writestr(f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg", f"{i}")
        archive.writestr("CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png", "mask")
    return root


def test_celeba_hqs_last_two_thousand_by_number_are_its_test_set(thirty_thousand: Path) -> None:
    for place in (thirty_thousand, thirty_thousand / "CelebAMask-HQ.zip"):
        found = list(source("celeba_hq").entries(place, 0.0))
        numbers = {
            split: sorted(int(Path(os.fsdecode(e.src)).stem) for e in found if e.split == split)
            for split in ("train", "test")
        }
        assert numbers == {"train": list(range(28_000)), "test": list(range(28_000, 30_000))}


def test_a_val_can_be_taken_from_celeba_hqs_train_and_never_from_its_test(
    thirty_thousand: Path,
) -> None:
    counts = Counter(e.split for e in source("celeba_hq").entries(thirty_thousand, 0.01))
    assert counts["test"] == 2_000 and counts["train"] + counts["val"] == 28_000
    assert 200 < counts["val"] < 360


def test_fewer_faces_than_celeba_hq_has_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.jpg" for i in range(10)))
    with pytest.raises(ValueError, match="10 images with 10 numbers, but CelebA-HQ has 30,000"):
        listed("celeba_hq", tmp_path)


# --- Paris StreetView -----------------------------------------------------------------------------

VIEWS = {
    ("train", "paris_train_original/48.84_2.34_90_-004.JPG", -1),
    ("test", "paris_eval/paris_eval_gt/001_im.png", -1),
}


def test_paris_is_read_unpacked_and_from_its_zips(tmp_path: Path) -> None:
    root, packed = tmp_path / "paris", tmp_path / "packed"
    touch(root, *(name for _, name, _ in VIEWS), "paris_eval/paris_eval_corrupted/001_im.png")
    packed.mkdir()
    zipped(root, "paris_train_original", name="paris_train_original.zip", into=packed)
    zipped(root, "paris_eval", name="paris_eval_75876.zip", into=packed)
    for place in (root, packed):
        found = listed("paris", place)
        assert said(found) == VIEWS
        assert contents(found, place) == {name for _, name, _ in VIEWS}
    zipped(root, "paris_eval", name="paris_eval.zip")
    with pytest.raises(ValueError, match="both a zip and its unpacked folder"):
        listed("paris", root)


def test_half_of_paris_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "paris_train_original/1.jpg")
    with pytest.raises(
        ValueError, match="does not contain paris_train_original/ and paris_eval_gt/"
    ):
        listed("paris", tmp_path)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [name for name in SOURCES if name not in ("folder", "wds")])
def test_a_source_that_is_not_there_or_something_else_is_said_in_one_line(
    tmp_path: Path, layout: str
) -> None:
    touch(tmp_path, "holiday/1.jpg")
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError) as error:
            listed(layout, place)
        assert str(place) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("layout", SOURCES)
def test_every_source_says_what_its_publisher_offers(layout: str) -> None:
    text = source(layout).offer.text()
    for word in ("page", "license", "source="):
        assert word in text


def test_the_counts_are_the_published_ones() -> None:
    assert source("places365_standard").offer.counts == {
        "train": 1_803_460, "val": 36_500, "test": 328_500,
    }  # fmt: skip
    assert sum(source("celeba").offer.counts.values()) == 202_599
    # "182,637 images for training" (MUSICAL): 162,770 and 19,867.
    assert source("celeba_trainval").offer.counts == {"train": 182_637, "test": 19_962}
    assert source("celeba_hq").offer.counts == {"train": 28_000, "test": 2_000}
    assert source("paris").offer.counts == {"train": 14_900, "test": 100}


def test_a_layout_nobody_knows_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="data.layout=imagenet: choose one of folder, places365"):
        source("imagenet")


def test_a_folder_and_the_tar_of_it_are_one_plan(places: tuple[Path, str], tmp_path: Path) -> None:
    root, size = places
    packed = as_published(root, size, tmp_path / "packed")
    digests = {
        make_plan("p", "images", listed("places365_standard", place), seed=0, shard_bytes=10**6,
                  options={}).sha256
        for place in (root, packed)
    }  # fmt: skip
    assert len(digests) == 1
