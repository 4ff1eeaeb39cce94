"""List and read the files of a source in place: in folders, or inside a tar or zip.

Archives are not unpacked: a listed file has its archive and offset, from which it is read.
"""

import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.formats import IMAGES, MAX_BYTES
from shards.hygiene import Policy, examine
from shards.pack import PackedSample, Reject
from shards.plan import Entry, Row

_LITTER = {b"__MACOSX", b"@eaDir", b"#recycle", b"$RECYCLE.BIN", b"lost+found", b"Thumbs.db",
           b"desktop.ini"}  # fmt: skip
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class File(NamedTuple):
    path: bytes  # inside the folder or archive that was listed, "/" between names
    size: int
    offset: int = 0  # of the bytes in a tar, of the local header in a zip
    fault: str = ""  # why it cannot be read: link, sparse, special

    def entry(self, archive: str, split: str = "", label: int = -1) -> Entry:
        return Entry(split, self.path, self.size, label, archive, self.offset)


def kind(path: bytes) -> str:
    """Return the suffix of a name in lower case, with its dot."""
    suffix = os.path.splitext(path)[1].lower().decode("ascii", "replace")
    return suffix if len(suffix) <= 9 and suffix[1:].isalnum() else "without suffix"


def is_litter(path: bytes) -> bool:
    """Return whether a path is hidden or was created by an operating system or file server."""
    names = path.split(b"/")
    return any(name in _LITTER or (name[:1] == b"." and name.strip(b".")) for name in names)


def images(files: Iterable[File], say: Callable[[str], None] | None = None) -> Iterator[File]:
    """Yield the images among `files`, then `say` how many others were skipped, by the reason."""
    skipped = Counter[str]()
    for file in files:
        reason = file.fault or kind(file.path)
        if reason in IMAGES:
            yield file
        else:
            skipped[reason] += 1
    if skipped and say:
        say(not_taken(skipped))


def not_taken(skipped: Counter[str]) -> str:
    """Return a message such as `5 files were skipped (4 .avif, 1 without suffix)`."""
    count = skipped.total()
    reasons = [f"{number} {reason}" for reason, number in skipped.most_common(12)]
    reasons += ["..."] if len(skipped) > 12 else []
    return f"{count} file{' was' if count == 1 else 's were'} skipped ({', '.join(reasons)})"


def is_archive(name: str) -> bool:
    """Return whether a name is that of an archive whose members can be read in place."""
    return name.lower().endswith((".tar", ".zip"))


def list_files(place: Path) -> Iterator[File]:
    """List the files in the folder, tar or zip `place` without litter; of one name the last.

    Raises ValueError for a missing or unreadable place, a compressed tar, or a damaged archive.
    """
    try:
        if place.is_dir():
            yield from _folder(os.fsencode(place))
        elif place.suffix.lower() == ".tar":
            yield from (file for file in _tar(place) if not is_litter(file.path))
        elif place.suffix.lower() == ".zip":
            yield from (file for file in _zip(place) if not is_litter(file.path))
        elif place.exists():
            raise ValueError(
                f"{place}: not a folder, .tar or .zip (single files of a compressed tar cannot be "
                "read; decompress it to .tar first)"
            )
        else:
            raise ValueError(f"{place} does not exist: give a folder or archive with source=")
    except OSError as error:
        where = os.fsdecode(error.filename or place)
        raise ValueError(f"{where}: cannot be read ({error.strerror or error})") from error


def _folder(root: bytes) -> Iterator[File]:
    """Yield each folder once: as itself if it is below `root`, else by the first link to it."""
    seen: set[tuple[int, int]] = set()
    folders, links = [b""], list[bytes]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
        inside = (folders or links).pop()
        here = os.path.join(root, inside)
        status = os.stat(here)
        identity = status.st_dev, status.st_ino
        if identity in seen:
            continue
        seen.add(identity)
        with os.scandir(here) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                if is_litter(entry.name):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    yield File(path, entry.stat().st_size)
                else:
                    yield File(path, 0, 0, "link" if entry.is_symlink() else "special")


def _tar(place: Path) -> Iterator[File]:
    found: dict[bytes, File | bytes] = {}  # by path: a file, or the path that a link points to
    with open(place, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    path = member.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                    if target := link_target(member):
                        found[path] = target.encode("utf-8", "surrogateescape")
                    elif not member.isdir():
                        fault = "sparse" if member.issparse() else ""
                        fault = fault if member.isreg() else "special"
                        found[path] = File(path, member.size, member.offset_data, fault)
                    vars(tar)["members"].clear()  # each would keep 1 kB
                end = int(vars(tar)["offset"])
        except tarfile.TarError as error:
            raise unreadable_tar(str(place), file, error) from error
        check_end(file, end, str(place))
    for path, entry in found.items():
        origin: File | bytes | None = entry
        hops = 0
        while isinstance(origin, bytes) and hops < 40:  # as many as Linux follows
            origin, hops = found.get(origin), hops + 1
        yield origin._replace(path=path) if isinstance(origin, File) else File(path, 0, 0, "link")


def link_target(member: tarfile.TarInfo) -> str:
    """Return the name of the member that a link in a tar points to, "" for other members."""
    if not (member.islnk() or member.issym()):
        return ""
    folder = posixpath.dirname(member.name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(folder, member.linkname))


def unreadable_tar(place: str, file: BinaryIO, error: Exception) -> ValueError:
    """Return the error for a file that tarfile does not open."""
    file.seek(0)
    begin = file.read(8)
    for magic, form in _COMPRESSED.items():
        if begin.startswith(magic):
            return ValueError(f"{place} is {form}, not a plain tar: decompress it")
    return ValueError(f"{place}: not a readable tar ({error}); download it again")


def check_end(file: BinaryIO, end: int, place: str) -> None:
    """Raise ValueError unless only zeros follow `end`, where tarfile found the end of a tar.

    tarfile also takes a zeroed member, or a file truncated between members, for the end.
    """
    file.seek(end)
    first = block = file.read(1 << 20)
    while block and not block.strip(b"\0"):
        block = file.read(1 << 20)
    if block:
        begin = file.tell() - len(block.lstrip(b"\0"))
        file.seek(begin + 257)
        if begin > end and file.read(5) == b"ustar":
            raise ValueError(
                f"{place}: another archive begins at byte {begin}: split tars that were joined by "
                "cat, or join them by `tar -A`; if they were not joined, download it again"
            )
    if block or len(first) < 512:
        raise ValueError(f"{place}: truncated or damaged at byte {end}; download it again")


def _zip(place: Path) -> Iterator[File]:
    try:
        with zipfile.ZipFile(place) as archive:
            for info in {info.filename: info for info in archive.infolist()}.values():
                if info.is_dir():
                    continue
                fault = "link" if stat.S_ISLNK(info.external_attr >> 16) else ""
                if info.flag_bits & 1 or info.compress_type not in (0, 8):
                    raise ValueError(
                        f"{place}: {info.filename!r} is encrypted or not deflated; unpack the zip"
                    )
                name = info.filename.encode("utf-8", "surrogateescape")
                yield File(name, info.file_size, info.header_offset, fault)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place}: not a readable zip ({error}); download it again") from error


class TooLarge(OSError, ValueError):
    """A file of more bytes than any image has; it is not read."""


def read_file(root: Path, row: Row | Entry) -> bytes:
    """Return the bytes of one planned file. Raises ValueError when the source has changed.

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
            elif place.suffix.lower() == ".zip":
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


def _unzip(file: BinaryIO, row: Row | Entry) -> bytes:
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
