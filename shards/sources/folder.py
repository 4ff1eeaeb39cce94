"""Any folder, tar or zip of images: `train/ val/ test/` inside, or a share held out by content."""

from collections.abc import Iterator
from pathlib import Path

from shards.plan import SPLITS, Entry
from shards.sources.files import File, files, is_image
from shards.sources.offer import Offer, Source
from shards.sources.published import hold_out

_ALIAS = {"validation": "val", "valid": "val"}


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    """The images of `source` by its split folders; without them `holdout` of all becomes val."""
    root, archive = (source, "") if source.is_dir() else (source.parent, source.name)
    tops = {_split(file.path) for file in _images(source)}
    if "train" in tops:
        for file in _images(source):
            if split := _split(file.path):
                yield Entry(split, file.path, file.size, -1, archive, file.offset)
        return
    if tops - {""}:
        found = ", ".join(sorted(tops - {""}))
        raise ValueError(f"{source}: has {found}/ but no train/; add it or rename them")
    flat = (Entry("train", f.path, f.size, -1, archive, f.offset) for f in _images(source))
    yield from hold_out(flat, root, holdout)


def _images(source: Path) -> Iterator[File]:
    """Listed afresh each time it is asked for, so that no list of a million files is held."""
    return (file for file in files(source) if is_image(file.path))


def _split(path: bytes) -> str:
    top = path.split(b"/", 1)[0].decode("utf-8", "replace") if b"/" in path else ""
    top = _ALIAS.get(top.lower(), top.lower())
    return top if top in SPLITS else ""


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
