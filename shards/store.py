"""Bytes at a URL: a local path, `file://`, `s3://`, or anything fsspec opens.

What is written appears whole or not at all: locally a temporary file, fsync and rename; on S3 one
PUT, or a multipart upload whose last request makes it visible. What is read is as long as was
asked for. A name is never a pattern: `*`, `?` and `[` mean themselves. `objects` has the retries
and the one-line errors of remote storage.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from shards.objects import (
    StoreError,
    Unavailable,
    children,
    delete,
    display,
    persist,
    upload_parts,
)

__all__ = [
    "StoreError",
    "Unavailable",
    "display",
    "exists",
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
TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.lacuna-tmp$")


# --- URLs -----------------------------------------------------------------------------------------


def is_local(url: str | os.PathLike) -> bool:
    """True for a plain path and for `file://`."""
    text = os.fspath(url)
    return "://" not in text or text.startswith("file://")


def local(url: str | os.PathLike) -> Path:
    """The path that a local `url` means."""
    text = os.fspath(url)
    if not is_local(text):
        raise ValueError(f"{display(text)} is no local path; give a folder or a file:// URL")
    if not text.startswith("file://"):
        return Path(text)
    _, slash, path = text.removeprefix("file://").partition("/")  # of a host nothing is read
    return Path(unquote(slash + path))


def join(url: str | os.PathLike, *parts: str) -> str:
    """`url` with `parts`, which are names as they are, below it, separated by single slashes."""
    text = os.fspath(url)
    if text.startswith("file://"):
        parts = tuple(map(quote, parts))
    return "/".join([text.rstrip("/") or "", *(part.strip("/") for part in parts)])


def name(url: str | os.PathLike) -> str:
    """The last part of a path or URL, without slashes at its end."""
    return os.fspath(url).rstrip("/").rpartition("/")[2]


# --- reading --------------------------------------------------------------------------------------


def read(url: str | os.PathLike, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of what lies at `url`, all of them by default.

    Raises FileNotFoundError, EOFError when the object ends before `end`, StoreError.
    """
    text = os.fspath(url)
    if is_local(text):
        with open(local(text), "rb") as file:
            file.seek(start or 0)
            data = file.read() if end is None else file.read(end - (start or 0))
        return _whole(data, text, start, end)
    if start is not None and start == end:
        return b""

    def ask(system: Any, path: str) -> bytes:
        if text.startswith(("s3://", "s3a://")):
            return system.cat_file(path, start=start, end=end, max_concurrency=1)
        return system.cat_file(path, start=start, end=end)

    return _whole(persist(text, ask), text, start, end)


def _whole(data: bytes, url: str, start: int | None, end: int | None) -> bytes:
    if end is not None and len(data) != end - (start or 0):
        raise EOFError(
            f"{display(url)}: {len(data)} bytes at {start or 0} where {end - (start or 0)} "
            "were expected; the object is not the one that was indexed"
        )
    return data


def size(url: str | os.PathLike) -> int:
    """Length in bytes. Raises FileNotFoundError, StoreError."""
    text = os.fspath(url)
    if is_local(text):
        return local(text).stat().st_size
    return int(persist(text, lambda system, path: system.info(path))["size"])


def exists(url: str | os.PathLike) -> bool:
    """Whether an object, a file or a folder lies at `url`."""
    text = os.fspath(url)
    if is_local(text):
        return local(text).exists()
    try:
        persist(text, lambda system, path: system.info(path))
    except FileNotFoundError:
        return False
    return True


def names(url: str | os.PathLike) -> list[str]:
    """The children of a folder, sorted; empty when there is none. Temporary files are left out."""
    text = os.fspath(url)
    if is_local(text):
        found = os.listdir(local(text)) if local(text).is_dir() else []
    else:
        try:
            found = children(text)
        except FileNotFoundError:
            return []
    return sorted(child for child in found if child and not TEMPORARY.match(child))


# --- writing --------------------------------------------------------------------------------------


def write(url: str | os.PathLike, data: bytes, exclusive: bool = False) -> None:
    """Publishes `data` at `url`, whole or not at all; parents are made.

    With `exclusive`, raises FileExistsError where something lies there already. An answer may be
    lost after the server took the bytes, so finding exactly `data` there counts as success: what
    must have one owner carries a word that only the owner knows.
    """
    text = os.fspath(url)
    if is_local(text):
        _publish(local(text), lambda file: file.write(data), exclusive)
        return
    mode = {"mode": "create"} if exclusive else {}
    try:
        persist(text, lambda system, path: system.pipe_file(path, data, chunksize=2**32, **mode))
    except FileExistsError:
        if read(text) != data:
            raise


def upload(url: str | os.PathLike, path: str | os.PathLike) -> None:
    """Publishes the finished local file `path` at `url`, whole or not at all."""
    text = os.fspath(url)
    length = os.stat(path).st_size
    if is_local(text):
        _publish(local(text), lambda file: _copy(path, file), exclusive=False)
    elif length <= ONE_PUT:
        write(text, Path(path).read_bytes())
    elif text.startswith(("s3://", "s3a://")):
        upload_parts(text, path, length)
    else:
        persist(text, lambda system, target: system.put_file(os.fspath(path), target))


def _copy(path: str | os.PathLike, file: Any) -> None:
    with open(path, "rb") as source:
        while block := source.read(16 * 2**20):
            file.write(block)


def _publish(target: Path, fill: Callable[[Any], Any], exclusive: bool) -> None:
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.lacuna-tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, target)
        else:
            os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if exclusive and isinstance(error, FileExistsError) and target.exists():
            raise
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # renamed already, or its folder never came to be
            temporary.unlink()


def unwritable(target: Path, error: OSError) -> StoreError:
    """What to say of a file that could not be written."""
    told = f"{target}: cannot be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Unavailable(f"{told}: free some space and run it again")
    return StoreError(f"{told}: name another place, or make this one writable")


def remove(url: str | os.PathLike, recursive: bool = False) -> None:
    """Removes the object at `url`, with `recursive` all below it; nothing there is no error."""
    text = os.fspath(url)
    with contextlib.suppress(FileNotFoundError):
        if is_local(text) and local(text).is_dir() and recursive:
            shutil.rmtree(local(text))
        elif is_local(text):
            local(text).unlink()
        else:
            delete(text, recursive)
