"""Read a publisher's download in place: a folder of archives, or the unpacked folders."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.pack import content_hash
from shards.plan import Entry
from shards.sources.files import File, images, list_files, read_file
from shards.sources.offer import say


class Part(NamedTuple):
    """A part of a download: a folder below `root`, or an archive there."""

    root: Path
    folder: str  # "" for an archive, or all of where the folder would be
    archive: str  # or the folder of `root` that holds `folder`; "" for `root` itself

    def files(self) -> Iterator[File]:
        """Yield the files of the part; paths begin with `folder` (in an archive: its own)."""
        prefix = self.folder.encode() + b"/" if self.folder else b""
        for file in list_files(self.root / self.archive / self.folder):
            yield file._replace(path=prefix + file.path)

    def images(self) -> Iterator[File]:
        """Yield the images of the part, then print the number of skipped files."""
        place = self.root / self.archive / self.folder
        yield from images(self.files(), lambda line: say(f"{place}: {line}"))

    def entry(self, split: str, file: File, label: int = -1) -> Entry:
        return file.entry(self.archive, split, label)


def find(source: Path, folders: Sequence[str], archives: Sequence[str]) -> Part | None:
    """Find one of `folders` or `archives` in `source`, or in a folder of `source`.

    `source` may be one of the archives. Raises ValueError if a place has two of them: one may be an
    incomplete copy of the other.
    """
    if not source.is_dir():
        return Part(source.parent, "", source.name) if source.name in archives else None
    for inside in ["", *sorted(entry.name for entry in os.scandir(source) if entry.is_dir())]:
        place = source / inside
        parts = [Part(source, name, inside) for name in folders if (place / name).is_dir()]
        parts += [
            Part(source, "", os.path.join(inside, name))
            for name in archives
            if (place / name).is_file()
        ]
        if len(parts) > 1:
            both = " and ".join(f"{p.folder}/" if p.folder else p.archive for p in parts)
            raise ValueError(f"{source} contains both {both}: keep only one of them")
        if parts:
            return parts[0]
    return None


def read_list(source: Path, name: str, inside: Sequence[str] = ()) -> list[str] | None:
    """Return the lines of the list `name` in or below `source` or in the archives `inside`."""
    root = source if source.is_dir() else source.parent
    places = [root / name, *sorted(root.glob(f"*/{name}"))]
    for place in places:
        if place.is_file():
            return _lines(place.read_bytes())
    for archive in inside:
        if (root / archive).is_file():
            for file in list_files(root / archive):
                if file.path.rsplit(b"/", 1)[-1] == name.encode():
                    return _lines(read_file(root, file.entry(archive)))
    return None


def _lines(data: bytes) -> list[str]:
    """Return the lines of a text in UTF-8 or, by its mark, UTF-16, as editors of Windows write."""
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(coding, "replace").splitlines()


def parse_labels(lines: Iterable[str], where: str) -> dict[str, int]:
    """Parse lines `name label` to a dictionary, names without their leading slash."""
    label_of = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise ValueError(
                f"{where}, line {number}: invalid {line!r}: expected a name and a number"
            )
        label_of[words[0].lstrip("/")] = int(words[1])
    return label_of


def missing_download(source: Path, wanted: str) -> ValueError:
    """Return the error for a source that is not the expected download."""
    if not source.exists():
        return ValueError(f"{source} does not exist: expected a folder or archive with {wanted}")
    return ValueError(f"{source} does not contain {wanted}: give the folder that does")


def hold_out(
    entries: Iterable[Entry],
    root: Path,
    share: float,
    split: str = "val",
    published: Collection[str] = (),
) -> Iterator[Entry]:
    """Move a `share` of the train entries to `split`, unless it is one of the `published` splits.

    The choice depends only on the bytes of each image, so that copies are on the same side and new
    images move no others; it reads every file of train once.
    """
    if not 0 <= share < 1:
        raise ValueError(f"invalid data.holdout={share}: expected at least 0 and less than 1")
    share = 0.0 if split in published else share
    for entry in entries:
        if share and entry.split == "train" and _below(entry, root, share):
            yield entry._replace(split=split)
        else:
            yield entry


def _below(entry: Entry, root: Path, share: float) -> bool:
    try:
        return content_hash(read_file(root, entry)) < share * 2**64
    except OSError:
        return False  # rejected as unreadable when its shard is written
