"""What is taken of a folder, tar or zip, and that the rest is counted with its reason."""

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from shards import external
from shards.mask_import import open_source, resolve_polarity
from shards.plan import Entry, Row
from shards.sources import source
from shards.sources.files import list_files, read_file
from tests.shards.test_external import index, rows_of, theirs
from tests.shards.test_mask_import import png, published
from tests.support.sets import jpeg, smooth_image


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def packed(root: Path, kind: str) -> Path:
    """`root` itself, or archived by the system's tar or by zipfile."""
    if kind == "folder":
        return root
    place = root.with_name(f"{root.name}.{kind}")
    if kind == "tar":
        subprocess.run(["tar", "cf", place, "-C", root, "."], check=True)
        return place
    with zipfile.ZipFile(place, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return place


def listed(place: Path, layout: str = "folder") -> list[Entry]:
    return sorted(source(layout).entries(place, 0.0))


def read(place: Path) -> dict[str, str]:
    """The text of each file by its name."""
    root, archive = (place, "") if place.is_dir() else (place.parent, place.name)
    return {
        file.path.decode(): read_file(
            root, Row(0, file.path, file.size, -1, archive, file.offset)
        ).decode()
        for file in list_files(place)
        if not file.fault
    }


KINDS = pytest.mark.parametrize("kind", ["folder", "tar", "zip"])


# --- row 6: links, and two versions of a name -----------------------------------------------------


def test_links_in_a_tar_are_the_files_that_they_point_to_as_in_a_folder(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"a/{i}.jpg" for i in range(6)))
    for i in range(6):
        os.link(root / f"a/{i}.jpg", root / f"hard{i}.jpg")
    (root / "soft.jpg").symlink_to("a/3.jpg")
    (root / "a" / "up.jpg").symlink_to("../hard1.jpg")
    expected = {name: f"a/{number}.jpg" for number in range(6)
                for name in (f"a/{number}.jpg", f"hard{number}.jpg")}  # fmt: skip
    expected |= {"soft.jpg": "a/3.jpg", "a/up.jpg": "a/1.jpg"}
    for kind in ("folder", "tar"):
        assert read(packed(root, kind)) == expected


def test_links_to_nothing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = put(tmp_path / "in", "a.jpg")
    (root / "b.jpg").symlink_to("gone.jpg")
    os.mkfifo(root / "c.jpg")
    for kind in ("folder", "tar"):
        assert len(listed(packed(root, kind))) == 1
        assert "2 files were skipped (1 link, 1 special)" in capsys.readouterr().err
    (root / "d.jpg").symlink_to("b.jpg")
    (root / "b.jpg").unlink()
    (root / "b.jpg").symlink_to("d.jpg")
    assert len(listed(packed(root, "tar"))) == 1
    assert "3 files were skipped (2 link, 1 special)" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.jpg", "a")
        link = zipfile.ZipInfo("b.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "a.jpg")
    assert len(listed(tmp_path / "z.zip")) == 1
    assert "1 file was skipped (1 link)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_the_last_version_of_a_name_counts(
    tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    place = packed(put(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg"), kind)
    (tmp_path / "a.jpg").write_text("corrected")
    if kind == "tar":
        subprocess.run(["tar", "rf", place, "-C", tmp_path, "a.jpg"], check=True)
        subprocess.run(["tar", "rf", place, "-C", tmp_path, "./a.jpg"], check=True)
    else:
        with zipfile.ZipFile(place, "a") as archive:
            archive.write(tmp_path / "a.jpg", "a.jpg")
    assert read(place) == {"a.jpg": "corrected", "b.jpg": "b.jpg", "c.jpg": "c.jpg"}
    assert len(listed(place)) == 3


def test_links_and_corrections_in_webdataset_tars(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for i in range(6):
        (root / f"{i}.jpg").write_bytes(jpeg(smooth_image(i)))
        (root / f"{i}.cls").write_text(str(i))
        os.link(root / f"{i}.jpg", root / f"{i}b.jpg")
    (root / "7.jpg").symlink_to("2.jpg")
    (root / "8.jpg").symlink_to("gone.jpg")
    names = [f"{i}.{ext}" for i in range(6) for ext in ("jpg", "cls")]
    names += [*(f"{i}b.jpg" for i in range(6)), "7.jpg", "8.jpg"]
    tar = tmp_path / "0.tar"
    subprocess.run(["tar", "cf", tar, "-C", root, *names], check=True)
    (root / "1.jpg").unlink()
    (root / "1.jpg").write_bytes(jpeg(smooth_image(100)))
    subprocess.run(["tar", "rf", tar, "-C", root, "1.jpg", "1.cls"], check=True)
    result = external.write(str(tmp_path / "out"), "t", str(tar), lambda _: None, 0.1)
    data = tar.read_bytes()
    stored = {
        row["src"]: (data[row["offset"] : row["offset"] + row["size"]], row["label"])
        for row in rows_of(result.manifest)
    }
    expected = {f"{i}.jpg": (jpeg(smooth_image(i)), i) for i in range(6)}
    expected |= {f"{i}b.jpg": (jpeg(smooth_image(i)), None) for i in range(6)}
    expected |= {"7.jpg": (jpeg(smooth_image(2)), None), "1.jpg": (jpeg(smooth_image(100)), 1)}
    assert stored == expected
    assert result.rejects == {"link": 1}


# --- row 7: webdataset tars of other people -------------------------------------------------------

IMAGE = jpeg(smooth_image(1))


def said(source: Path, out: Path, rate: float = 1.0) -> tuple[list[str], object]:
    lines: list[str] = []
    return lines, external.write(str(out), "t", str(source), lines.append, rate)


@pytest.mark.parametrize(
    ("members", "rejects", "line"),
    [
        (["img0.v2.jpg", "img1.v3.jpg"], {"name": 2}, None),
        (["a.v1.png", "a.v2.png", "a.txt"], {"name": 2}, "1 file was skipped (1 .txt)"),
        (["1.avif", "2.avif", "3.npy", "4"], {}, "4 files were skipped (2 .avif, 1 without"),
        (["a.txt", "a.cls", "__MACOSX/._b.jpg", ".c.jpg"], {}, "(1 .txt, 1 .cls)"),
        (["@eaDir/b.jpg/SYNOPHOTO_THUMB_B.jpg", "./c/.d.jpg", "Thumbs.db"], {}, None),
        (
            ["./x/good.seg.png", "./x/good.v2.jpg", "./x/good.png", "./x/good.json"],
            {},
            "3 files were skipped (3 second image of a sample)",
        ),
    ],
)
def test_members_that_are_no_sample_are_counted(
    tmp_path: Path, members: list[str], rejects: dict[str, int], line: str | None
) -> None:
    names = ["./x/good.jpg", *members]
    tar = theirs(tmp_path / "0.tar", dict.fromkeys(names, IMAGE))
    lines, result = said(tar, tmp_path / "out")
    assert [row["src"] for row in rows_of(result.manifest)] == ["./x/good.jpg"]
    assert result.rejects == rejects
    counted = [text for text in lines if " skipped (" in text]
    assert (line in counted[0]) if line else not counted


@pytest.mark.parametrize("name", ["a.JPG", "a.jfif", "a.jpe", "a.tif", "a.bmp"])
def test_images_are_known_by_the_suffixes_that_folders_know(tmp_path: Path, name: str) -> None:
    tar = theirs(tmp_path / "0.tar", {name: IMAGE})
    assert [row["src"] for row in rows_of(index(str(tar), tmp_path / "out"))] == [name]
    assert len(listed(packed(put(tmp_path / "in", name), "zip"))) == 1


def test_empty_tars_among_others_are_sets_of_nothing(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        theirs(tmp_path / "in" / f"{number}.tar", {} if number == 1 else {"a.jpg": IMAGE})
    manifest = index(str(tmp_path / "in"), tmp_path / "out")
    assert [shard.samples for shard in manifest.splits["train"].shards] == [1, 0, 1]


def test_files_next_to_tars_are_counted_and_compressed_shards_are_named(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar.gz", "val/0.tar", "val/1.tgz"):
        theirs(tmp_path / "in" / name, {"a.jpg": IMAGE})
    put(tmp_path / "in", "2.jpg", "val/3.jpg", ".DS_Store")
    lines, _ = said(tmp_path / "in", tmp_path / "out")
    assert "4 files were skipped (2 .jpg, 1 .gz, 1 .tgz)" in lines
    assert any("decompress" in line and "1.tar.gz, val/1.tgz" in line for line in lines)


@pytest.mark.parametrize(
    ("begin", "what"),
    [(b"\x1f\x8b\x08", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"),
     (b"\x28\xb5\x2f\xfd", "zstd")],
)  # fmt: skip
def test_a_compressed_stream_named_tar_is_called_what_it_is(
    tmp_path: Path, begin: bytes, what: str
) -> None:
    tar = tmp_path / "00001.tar"
    tar.write_bytes(begin + bytes(range(256)) * 8)
    for attempt in (lambda: index(str(tar), tmp_path / "out"), lambda: list(list_files(tar))):
        with pytest.raises(ValueError, match=f"00001.tar is {what}, .*decompress it$"):
            attempt()


def test_two_tars_joined_by_cat_are_named_as_such(tmp_path: Path) -> None:
    one = theirs(tmp_path / "1.tar", {"a.jpg": IMAGE})
    two = theirs(tmp_path / "2.tar", {"b.jpg": IMAGE})
    place = tmp_path / "both.tar"
    place.write_bytes(one.read_bytes() + two.read_bytes())
    begin = f"both.tar: another archive begins at byte {one.stat().st_size}"
    for attempt in (lambda: index(str(place), tmp_path / "out"), lambda: list(list_files(place))):
        with pytest.raises(ValueError, match=begin):
            attempt()


@pytest.mark.parametrize("broken", [False, True])
def test_names_in_latin_1_are_read_or_rejected_by_name(tmp_path: Path, broken: bool) -> None:
    tar = tmp_path / "0.tar"
    theirs(tar, {"good.jpg": IMAGE, "caf\udce9.jpg": IMAGE[:-9] if broken else IMAGE},
           format=tarfile.GNU_FORMAT)  # fmt: skip
    assert b"caf\xe9.jpg" in tar.read_bytes()
    _, result = said(tar, tmp_path / "out")
    rows = [row["src"] for row in rows_of(result.manifest)]
    assert rows == ["good.jpg"] if broken else ["good.jpg", "caf\\xe9.jpg"]
    assert result.rejects == ({"corrupt": 1} if broken else {})


# --- row 8: links to folders ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "links",
    [
        {"latest": "train"},
        {"a": "train", "z": "train", "val/again": "../train"},
        {"again": ".", "train/x/up": "../.."},
    ],
)
def test_folders_are_listed_as_themselves_whichever_name_the_disk_gives_first(
    tmp_path: Path, links: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "in", "train/x/1.jpg", "train/2.jpg", "val/3.jpg")
    for name, target in links.items():
        (root / name).symlink_to(target)
    scan = os.scandir

    class Scan(list):
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

    for backward in (False, True):
        monkeypatch.setattr(
            os, "scandir",
            lambda p: Scan(sorted(scan(p), key=lambda e: e.name, reverse=backward)),  # noqa: B023
        )  # fmt: skip
        assert [(e.split, e.src) for e in listed(root)] == [
            ("train", b"train/2.jpg"),
            ("train", b"train/x/1.jpg"),
            ("val", b"val/3.jpg"),
        ]


def test_a_folder_outside_is_listed_by_the_first_of_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "disk", "1.jpg", "sub/2.jpg")
    root = put(tmp_path / "in", "0.jpg")
    for name in ("c", "b", "d"):
        (root / name).symlink_to(tmp_path / "disk")
    assert [e.src for e in listed(root)] == [b"0.jpg", b"b/1.jpg", b"b/sub/2.jpg"]


# --- row 9: names ---------------------------------------------------------------------------------


@KINDS
def test_suffixes_of_images_are_taken_and_the_others_are_counted(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    root = put(tmp_path / "in", "x.jfif", "x.jpe", "X.JPG", "sub/x.webp",
               "1.avif", "2.AVIF", "sub/3.avif", "4.heic", "z", "sub/notes.txt",
               "@eaDir/x.jpg/SYNOPHOTO_THUMB_B.jpg", "sub/__MACOSX/._x.jpg", ".git/c.jpg",
               "sub/.hidden/d.jpg", "Thumbs.db", "sub/desktop.ini",
               "$RECYCLE.BIN/e.jpg")  # fmt: skip
    names = {entry.src.decode() for entry in listed(packed(root, kind))}
    assert names == {"x.jfif", "x.jpe", "X.JPG", "sub/x.webp"}
    (line,) = capsys.readouterr().err.splitlines()
    count, reasons = line.rstrip(")").split(" (")
    assert count == "6 files were skipped"
    assert set(reasons.split(", ")) == {"3 .avif", "1 .heic", "1 without suffix", "1 .txt"}
    assert reasons.startswith("3 .avif")


def test_masks_and_published_layouts_count_what_they_do_not_take_too(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    put(tmp_path / "masks", "1.png", "1.svg", "@eaDir/1.png")
    assert len(open_source(str(tmp_path / "masks")).files) == 1
    assert "1 file was skipped (1 .svg)" in capsys.readouterr().err
    put(tmp_path / "p", "data_256/a/1.jpg", "data_256/a/1.avif")
    assert len(listed(tmp_path / "p", "places365_standard")) == 1
    assert "data_256: 1 file was skipped (1 .avif)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "unpacked", "archive"),
    [
        ("places365_standard", "data_256/a/airfield/1.jpg", "train_256_places365standard.tar"),
        ("places365_standard", "places365_standard/train/a/1.jpg",
         "places365standard_easyformat.tar"),
        ("places365_challenge", "val_large/1.jpg", "val_large.tar"),
        ("celeba", "img_align_celeba/1.jpg", "img_align_celeba.zip"),
    ],
)  # fmt: skip
def test_a_folder_next_to_the_archive_it_may_be_half_of_is_refused(
    tmp_path: Path, layout: str, unpacked: str, archive: str
) -> None:
    put(tmp_path, unpacked, archive, "list_eval_partition.txt")
    with pytest.raises(ValueError, match=f"both {unpacked.split('/')[0]}/ and {archive}: keep"):
        listed(tmp_path, layout)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("inside", [False, True])
def test_lists_are_read_as_editors_of_windows_write_them(
    tmp_path: Path, coding: str, inside: bool
) -> None:
    put(tmp_path, "img_align_celeba/1.jpg", "img_align_celeba/2.jpg")
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\r\n2.jpg 1\r\n", coding)
    assert [e.split for e in listed(tmp_path, "celeba")] == ["train", "val"]
    put(tmp_path, "data_256/one.jpg")
    text = "one.jpg 5\n".encode(coding)
    if inside:
        theirs(tmp_path / "filelist_places365-standard.tar",
               {"f/places365_train_standard.txt": text})  # fmt: skip
    else:
        (tmp_path / "places365_train_standard.txt").write_bytes(text)
    assert [e.label for e in listed(tmp_path, "places365_standard")] == [5]


@pytest.mark.parametrize("folder", ["2021-05", "2021_06", "40-30", "120-150"])
def test_a_folder_named_by_a_date_is_no_range_of_ratios(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    for name, pixels in published().items():
        (tmp_path / folder / name).write_bytes(png(pixels))
    assert resolve_polarity(open_source(str(tmp_path)), "auto") == "hole_white"
