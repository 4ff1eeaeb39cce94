"""List and read the files of a source in place: in folders, or inside a tar or zip.

Archives are not unpacked: a listed file has its archive and offset, from which it is read.
"""

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.hygiene import Policy, examine
from shards.pack import PackedSample, Reject
from shards.plan import Row

IMAGES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
MAX_BYTES = 512 * 2**20  # of one file; far more than an image of 64 megapixels


class File(NamedTuple):
    path: bytes  # inside the folder or archive that was listed, "/" between names
    size: int
    offset: int = 0  # of the bytes in a tar, of the local header in a zip


def is_image(path: bytes) -> bool:
    """Whether a path names an image; False for hidden files and the extra files of macOS zips."""
    name = path.rsplit(b"/", 1)[-1]
    hidden = name.startswith(b".") or path.startswith(b"__MACOSX/")
    return name.lower().endswith(IMAGES) and not hidden


def is_archive(name: str) -> bool:
    """Whether a name is that of an archive whose members can be read in place."""
    return name.endswith((".tar", ".zip"))


def list_files(place: Path) -> Iterator[File]:
    """Every file in the folder, tar or zip `place`, in no particular order.

    Raises ValueError for a missing or unreadable place, a compressed tar, or a damaged archive.
    """
    try:
        if place.is_dir():
            yield from _folder(os.fsencode(place))
        elif place.suffix == ".tar":
            yield from _tar(place)
        elif place.suffix == ".zip":
            yield from _zip(place)
        elif place.exists():
            raise ValueError(
                f"{place}: not a folder, .tar or .zip (single files of a compressed tar cannot be "
                "read; decompress it to .tar first)"
            )
        else:
            raise ValueError(f"{place}: no such folder or archive; check source=")
    except OSError as error:
        where = os.fsdecode(error.filename or place)
        raise ValueError(f"{where}: cannot be read ({error.strerror or error})") from error


def _folder(root: bytes) -> Iterator[File]:
    seen: set[tuple[int, int]] = set()
    stack = [b""]
    while stack:
        inside = stack.pop()
        here = os.path.join(root, inside)
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a parent folder
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    stack.append(path)
                elif entry.is_file():
                    yield File(path, entry.stat().st_size)


def _tar(place: Path) -> Iterator[File]:
    try:
        with tarfile.open(place, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse():
                    name = member.name.encode("utf-8", "surrogateescape")
                    yield File(name.removeprefix(b"./"), member.size, member.offset_data)
                vars(tar)["members"].clear()  # each would keep 1 kB
            end = int(vars(tar)["offset"])
    except tarfile.TarError as error:
        raise ValueError(f"{place}: not a readable tar ({error}); download it again") from error
    with open(place, "rb") as file:
        check_end(file, end, str(place))


def check_end(file: BinaryIO, end: int, place: str) -> None:
    """Raise ValueError unless only zeros follow `end`, where tarfile found the end of a tar.

    tarfile also takes a zeroed member, or a file truncated between members, for the end.
    """
    file.seek(end)
    first = block = file.read(1 << 20)
    while block and not block.strip(b"\0"):
        block = file.read(1 << 20)
    if block or len(first) < 512:
        raise ValueError(f"{place}: truncated or damaged at byte {end}; download it again")


def _zip(place: Path) -> Iterator[File]:
    try:
        with zipfile.ZipFile(place) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if info.flag_bits & 1 or info.compress_type not in (0, 8):
                    raise ValueError(
                        f"{place}: {info.filename!r} is encrypted or not deflated; unpack the zip"
                    )
                name = info.filename.encode("utf-8", "surrogateescape")
                yield File(name, info.file_size, info.header_offset)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place}: not a readable zip ({error}); download it again") from error


class TooLarge(OSError, ValueError):
    """A file of more bytes than any image has; it is not read."""


def read_file(root: Path, row: Row) -> bytes:
    """The bytes of one planned file. Raises ValueError when the source has changed.

    Raises TooLarge, before any byte is read, for a file above MAX_BYTES.
    """
    packed = is_archive(row.archive)
    place = root / row.archive if packed else root / row.archive / os.fsdecode(row.src)
    if row.size > MAX_BYTES:
        raise TooLarge(f"{place}: {row.size} bytes, above {MAX_BYTES}: not an image; remove it")
    try:
        with open(place, "rb") as file:
            if not packed:
                data = file.read(row.size + 1)
            elif place.suffix == ".zip":
                data = _unzip(file, row)
            else:
                file.seek(row.offset)
                data = file.read(row.size)
    except (FileNotFoundError, NotADirectoryError, zlib.error, struct.error):
        data = None
    if data is None or len(data) != row.size:
        raise ValueError(
            f"{place}: missing or changed since the set was planned; restore it, or shard into "
            "another out="
        )
    return data


def _unzip(file: BinaryIO, row: Row) -> bytes:
    """Read a zip member at its local header, whose sizes may be zero: inflate until it ends.

    Stops one byte after the size in the zip's directory, even if there is more.
    """
    file.seek(row.offset)
    fixed = file.read(30)
    method, name, extra = struct.unpack_from("<8xH16xHH", fixed)
    if fixed[:4] != b"PK\x03\x04":
        return b""
    file.seek(name + extra, os.SEEK_CUR)
    if method == 0:
        return file.read(row.size)
    inflater, data = zlib.decompressobj(-15), bytearray()
    while not inflater.eof and len(data) <= row.size:
        block = inflater.unconsumed_tail or file.read(1 << 16)
        if not block:
            break
        data += inflater.decompress(block, row.size + 1 - len(data))
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Loader:
    """Load one row of a plan from `root` and examine it under `policy`; can be pickled."""

    root: Path
    policy: Policy

    def __call__(self, row: Row) -> PackedSample | Reject:
        src = row.src.decode("utf-8", "backslashreplace")
        try:
            data = read_file(self.root, row)
        except OSError as error:
            reason = "too_large" if isinstance(error, TooLarge) else "unreadable"
            return Reject(src, reason, error.strerror or str(error))
        return examine(src, data, self.policy, row.label)
