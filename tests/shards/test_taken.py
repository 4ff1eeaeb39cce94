"""What is taken of a folder, tar or zip, and that the rest is counted with its reason."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from shards.mask_import import open_source, resolve_polarity
from shards.plan import Entry, Row
from shards.sources import source
from shards.sources.files import list_files, read_file
from tests.shards.test_external import theirs
from tests.shards.test_mask_import import png, published


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


# --- row 9: names ---


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
    with pytest.raises(ValueError, match=f"both {unpacked.split('/')[0]}/ and {archive} are there"):
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
