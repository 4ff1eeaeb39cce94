"""Read and write files at a URL: a local path, `file://`, `s3://`, or any scheme of fsspec.

Writes are atomic: locally a temporary file, fsync and rename; on S3 one PUT, or a multipart upload
whose last request makes it visible. Reads return exactly the requested length. A name is never a
pattern: `*`, `?` and `[` are literal. `objects` has the retries and the one-line errors of remote
storage.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from shards import files
from shards.objects import (
    StoreError,
    Unavailable,
    children,
    delete,
    display,
    upload_parts,
    with_retries,
)

__all__ = [
    "StoreError",
    "Unavailable",
    "display",
    "exists",
    "expanded",
    "is_local",
    "join",
    "local",
    "name",
    "names",
    "read",
    "remove",
    "size",
    "unwritable",
    "upload",
    "write",
]

ONE_PUT = 256 * 2**20  # larger uploads go in parts
_LITTER = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|@eaDir|lost\+found", re.IGNORECASE)
TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.lacuna-tmp$")


# --- URLs -----------------------------------------------------------------------------------------


def is_local(url: str | os.PathLike[str]) -> bool:
    """Return True for a plain path and for `file://`."""
    text = os.fspath(url)
    return "://" not in text or text.startswith("file://")


def local(url: str | os.PathLike[str]) -> Path:
    """Return the path of a local `url`."""
    text = os.fspath(url)
    if not is_local(text):
        raise ValueError(f"{display(text)} is not a local path; give a folder or a file:// URL")
    if not text.startswith("file://"):
        return Path(text)
    _, slash, path = text.removeprefix("file://").partition("/")  # the host is ignored
    return Path(unquote(slash + path))


def expanded(text: str) -> str:
    """Return a path, a file: or a sqlite: URL with a leading `~` replaced by a home folder."""
    text = re.sub("^file:///?(?=~)", "", text)
    start, sqlite, path = text.rpartition("sqlite:///")
    return start + sqlite + os.path.expanduser(path)


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """Append the literal names `parts` to `url`, separated by single slashes."""
    text = os.fspath(url)
    if text.startswith("file://"):
        parts = tuple(map(quote, parts))
    return "/".join([text.rstrip("/") or "", *(part.strip("/") for part in parts)])


def name(url: str | os.PathLike[str]) -> str:
    """Return the last part of a path or URL, without slashes at its end."""
    return os.fspath(url).rstrip("/").rpartition("/")[2]


# --- reading --------------------------------------------------------------------------------------


def read(url: str | os.PathLike[str], start: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes [start, end) of the file at `url`, by default all.

    Raises FileNotFoundError, EOFError if the file ends before `end`, StoreError.
    """
    text = os.fspath(url)
    if is_local(text):
        with open(local(text), "rb") as file:
            file.seek(start or 0)
            data = file.read() if end is None else file.read(end - (start or 0))
        return _whole(data, text, start, end)
    if start is not None and start == end:
        return b""

    def ask(system: Any, path: str) -> Any:
        if text.startswith(("s3://", "s3a://")):
            return system.cat_file(path, start=start, end=end, max_concurrency=1)
        return system.cat_file(path, start=start, end=end)

    return _whole(with_retries(text, ask), text, start, end)


def _whole(data: bytes, url: str, start: int | None, end: int | None) -> bytes:
    wanted = len(data) if end is None else end - (start or 0)
    if len(data) > wanted:
        raise StoreError(
            f"{display(url)}: the server ignores Range requests and sends whole files; use one "
            "that supports them, such as nginx, or copy the files to a disk or bucket"
        )
    if len(data) < wanted:
        raise EOFError(
            f"{display(url)}: {len(data)} bytes at {start or 0}, expected {wanted}; "
            "the file has changed since it was indexed"
        )
    return data


def size(url: str | os.PathLike[str]) -> int:
    """Return the length in bytes. Raises FileNotFoundError, StoreError."""
    text = os.fspath(url)
    if is_local(text):
        return local(text).stat().st_size
    return int(with_retries(text, lambda system, path: system.info(path))["size"])


def exists(url: str | os.PathLike[str]) -> bool:
    """Return whether there is an object, a file or a folder at `url`."""
    text = os.fspath(url)
    if is_local(text):
        return local(text).exists()
    try:
        with_retries(text, lambda system, path: system.info(path))
    except FileNotFoundError:
        return False
    return True


def names(url: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names in a folder; empty if there is no folder.

    Without temporary files, and without what file managers and disks leave in an empty folder.
    """
    text = os.fspath(url)
    if is_local(text):
        inside = os.listdir(local(text)) if local(text).is_dir() else []
    else:
        try:
            inside = children(text)
        except FileNotFoundError:
            return []
    ours = (child for child in inside if child and not _LITTER.fullmatch(child))
    return sorted(child for child in ours if not TEMPORARY.match(child))


# --- writing --------------------------------------------------------------------------------------


def write(url: str | os.PathLike[str], data: bytes, exclusive: bool = False) -> None:
    """Write `data` to `url` atomically; creates parent folders.

    With `exclusive`, raises FileExistsError if the file exists. The answer of a successful request
    may be lost, so an existing file with exactly `data` counts as success: to claim a file for one
    owner, put a random word of the owner into `data`.
    """
    text = os.fspath(url)
    if is_local(text):
        _publish(local(text), lambda file: file.write(data), exclusive)
        return
    mode = {"mode": "create"} if exclusive else {}
    try:
        with_retries(
            text, lambda system, path: system.pipe_file(path, data, chunksize=2**32, **mode)
        )
    except FileExistsError:
        if read(text) != data:
            raise


def upload(url: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Upload the local file `path` to `url` atomically."""
    text = os.fspath(url)
    length = os.stat(path).st_size
    if is_local(text):
        _publish(local(text), lambda file: _copy(path, file), exclusive=False)
    elif length <= ONE_PUT:
        write(text, Path(path).read_bytes())
    elif text.startswith(("s3://", "s3a://")):
        upload_parts(text, path, length)
    else:
        with_retries(text, lambda system, target: system.put_file(os.fspath(path), target))


def _copy(path: str | os.PathLike[str], file: Any) -> None:
    with open(path, "rb") as source:
        while block := source.read(16 * 2**20):
            file.write(block)


def _publish(target: Path, fill: Callable[[Any], Any], exclusive: bool) -> None:
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.lacuna-tmp"
    try:
        files.make_folder(target.parent)
        files.create(temporary, fill)
        (files.link if exclusive else files.rename)(temporary, target)
        files.sync_folder(target.parent)
    except OSError as error:
        if exclusive and isinstance(error, FileExistsError) and target.exists():
            raise
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            files.remove(temporary)


def unwritable(target: Path, error: OSError) -> StoreError:
    """Return the error for a file that could not be written."""
    message = f"{target}: cannot be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Unavailable(f"{message}: free some space and run the command again")
    return StoreError(f"{message}: give another path, or make this one writable")


def remove(url: str | os.PathLike[str], recursive: bool = False) -> None:
    """Remove the file at `url`, with `recursive` all below it; ignores missing files."""
    text = os.fspath(url)
    if is_local(text):
        folder = recursive and local(text).is_dir()
        (files.remove_folder if folder else files.remove)(local(text))
        return
    with contextlib.suppress(FileNotFoundError):
        delete(text, recursive)
