"""Any folder, tar or zip of images: `train/ val/ test/` inside, or a share held out by content."""

from collections.abc import Iterator
from pathlib import Path

from shards.pack import content_hash
from shards.plan import SPLITS, Entry, Row
from shards.sources.files import File, files, is_image, read_file
from shards.sources.offer import Offer, Source

_ALIAS = {"validation": "val", "valid": "val"}


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    """The images of `source` by its split folders; without them `holdout` of all becomes val.

    Whether a picture is held out depends on its bytes alone, so copies of one picture stay on one
    side and a new picture moves no other; every file is read once for it.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"data.holdout={holdout} must be at least 0 and less than 1")
    listed = [file for file in files(source) if is_image(file.path)]
    root, archive = (source, "") if source.is_dir() else (source.parent, source.name)
    tops = {_split(file.path) for file in listed}
    if "train" in tops:
        for file in listed:
            if split := _split(file.path):
                yield Entry(split, file.path, file.size, -1, archive, file.offset)
        return
    if tops - {""}:
        found = ", ".join(sorted(tops - {""}))
        raise ValueError(f"{source}: has {found}/ but no train/; add it or rename them")
    for file in listed:
        split = "val" if holdout and _held_out(root, archive, file, holdout) else "train"
        yield Entry(split, file.path, file.size, -1, archive, file.offset)


def _split(path: bytes) -> str:
    top = path.split(b"/", 1)[0].decode("utf-8", "replace") if b"/" in path else ""
    top = _ALIAS.get(top.lower(), top.lower())
    return top if top in SPLITS else ""


def _held_out(root: Path, archive: str, file: File, holdout: float) -> bool:
    row = Row(0, file.path, file.size, -1, archive, file.offset)
    try:
        return content_hash(read_file(root, row)) < holdout * 2**64
    except OSError:
        return False  # rejected as unreadable when its shard is written


SOURCE = Source(
    Offer(
        title="Any folder of images",
        page="(yours)",
        licence="(yours)",
        files=(
            ("train/ val/ test/", "folders of images, nested as you like; only train/ is needed"),
            ("or any images", "without train/, data.holdout of them (by content hash) become val"),
        ),
        give="the folder, or a .tar or .zip of it",
    ),
    entries,
)
