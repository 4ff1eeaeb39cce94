"""Change files on a disk: with `objects`, the only place of effects that must survive a crash.

Tests record these functions and rebuild the disk as it may be after each of them.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make_folder(path: Path) -> None:
    """Make a folder and those above it; the name of each new one is synced."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def create(path: Path, fill: Callable[[Any], Any]) -> None:
    """Write a new file by `fill(file)` and sync its bytes, not yet its name."""
    with open(path, "xb") as file:
        fill(file)
        file.flush()
        sync(file.fileno())


def opened(path: Path) -> int:
    """Open a file for `append`, creating it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def append(file: int, data: bytes | memoryview) -> int:
    """Append to an open file, unsynced; returns how many bytes the disk had room for."""
    return os.write(file, data)


def append_all(file: int, data: bytes | memoryview) -> None:
    """As `append`, but a full disk raises OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[append(file, rest) :]


def append_to(path: Path, data: bytes) -> None:
    """Append to a file, creating it, unsynced; a full disk raises OSError."""
    file = opened(path)
    try:
        append_all(file, data)
    finally:
        os.close(file)


def cut(file: int, length: int) -> None:
    os.ftruncate(file, length)


def sync(file: int) -> None:
    """Sync the bytes of an open file."""
    os.fsync(file)


def sync_path(path: Path) -> None:
    """Sync the bytes of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        sync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Sync the names in a folder: new, changed and removed ones."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rename(path: Path, target: Path) -> None:
    """Rename a file, replacing `target`, unsynced."""
    os.replace(path, target)


def link(path: Path, target: Path) -> None:
    """Give a file a second name; FileExistsError if there is one."""
    os.link(path, target)


def replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole; the name is unsynced, so after a crash it may be the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    remove(temporary)  # of a crashed process with this number
    create(temporary, lambda file: file.write(data))
    rename(temporary, path)


def remove(path: Path) -> None:
    """Remove a file if it exists, unsynced."""
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it, in any order, unsynced."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
