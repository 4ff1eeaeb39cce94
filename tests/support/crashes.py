"""Crash points: record the durable effects of a piece of work, and rebuild what is left after each.

On a disk (`shards.files`) a process that dies leaves everything it did; a machine that stops leaves
what was synced and any part of the rest. Four such parts are built after each effect: nothing of
it, only the names, only the bytes, and the names with half of what was appended. In an object store
(fsspec's `memory://` behind `shards.store`) each request is answered or not; a reply that is lost
after the object is stored is played by raising where the client reads it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards import files, objects

BUCKET = "memory://bucket"
SKIPPED: set[str] = set()  # kinds of effects that a planted fault leaves out
PARTS = ("killed", "all unsynced lost", "bytes lost", "names lost", "torn")


class File:
    """An inode: its bytes, and those that a sync has made durable."""

    def __init__(self, data: bytes = b"", durable: bytes = b"") -> None:
        self.data, self.durable = data, durable

    def torn(self) -> bytes:
        kept = len(self.durable) if self.data.startswith(self.durable) else 0
        return self.data[: kept + (len(self.data) - kept) // 2]


class Disk:
    """Names and inodes below one folder, and the names that a sync of their folder made durable."""

    def __init__(self, root: Path) -> None:
        self.names: dict[str, File | None] = {}  # None: a folder
        for path in sorted(root.rglob("*")):
            data = path.read_bytes() if path.is_file() else b""
            self.names[str(path.relative_to(root))] = None if path.is_dir() else File(data, data)
        self.durable = dict(self.names)

    def apply(self, kind: str, name: str, value: Any) -> None:
        names = self.names
        if kind == "folder":
            names.setdefault(name, None)
        elif kind == "append":
            file = names.setdefault(name, File())
            file.data += value
        elif kind == "cut":
            names[name].data = names[name].data[:value]
        elif kind == "sync":
            if name in names:
                names[name].durable = names[name].data
        elif kind == "rename":
            names[value] = names.pop(name)
        elif kind == "link":
            names[value] = names[name]
        elif kind == "remove":
            names.pop(name, None)
        elif kind == "sync_folder":
            for known in {*names, *self.durable}:
                if (os.path.dirname(known) or ".") == name:
                    if known in names:
                        self.durable[known] = names[known]
                    else:
                        self.durable.pop(known)

    def left(self, part: str) -> dict[str, bytes | None]:
        """The files and folders that a crash leaves; a file below a lost folder is lost."""
        names = self.durable if part in ("all unsynced lost", "names lost") else self.names
        whole = {
            name: file
            for name, file in names.items()
            if all(str(p) in names for p in Path(name).parents if str(p) != ".")
        }
        take = {
            "killed": lambda f: f.data,
            "names lost": lambda f: f.data,
            "torn": File.torn,
        }.get(part, lambda f: f.durable)
        return {name: file if file is None else take(file) for name, file in whole.items()}


class Left(NamedTuple):
    """What a crash after effect `number` left: the disk, the bucket, and what had been promised."""

    number: int
    part: str
    effect: str
    disk: dict[str, bytes | None]
    bucket: dict[str, bytes]
    promised: tuple[Any, ...]


class Recorder:
    """Effects below `root` and in the bucket; `promise` notes what the work has reported by now."""

    def __init__(self, root: Path) -> None:
        self.root, self.effects = root, []
        self.requests, self.lose = 0, None  # the number of the request whose reply is lost
        self.start = Disk(root)
        self.folders = set(self.start.names)
        self.bucket = bucket()

    def add(self, kind: str, path: Any, value: Any = b"") -> None:
        if kind in SKIPPED:
            return
        name = str(path)
        if kind not in ("put", "delete", "promise"):
            name = os.path.relpath(path, self.root)
            if name.startswith(".."):
                return
            self._made(Path(name) / "any" if kind == "sync_folder" else Path(name))
            for child in sorted(Path(path).iterdir()) if kind == "sync_folder" else ():
                if child.is_dir():
                    self._made(child.relative_to(self.root) / "any")
        self.effects.append((kind, name, value))

    def _made(self, path: Path) -> None:
        """Note the folders above `path`, when something is first done in each."""
        for folder in list(path.parents)[-2::-1]:
            if str(folder) not in self.folders:
                self.folders.add(str(folder))
                self.effects.append(("folder", str(folder), b""))

    def promise(self, value: Any) -> None:
        self.add("promise", "", value)

    def states(self) -> Iterator[Left]:
        """Every state that a crash can leave, before the first effect and after each."""
        disk, stored, promised = self.start, dict(self.bucket), ()
        for number, (kind, name, value) in enumerate([("start", "", b""), *self.effects]):
            if kind == "promise":
                promised = (*promised, value)
            elif kind == "put":
                stored = {**stored, name: value}
            elif kind == "delete":
                stored = {key: data for key, data in stored.items() if key != name}
            else:
                disk.apply(kind, name, value)
            for part in PARTS:
                yield Left(number, part, f"{kind} {name}", disk.left(part), stored, promised)


def bucket() -> dict[str, bytes]:
    return {key: file.getvalue() for key, file in MemoryFileSystem.store.items()}


def _set_bucket(stored: dict[str, bytes]) -> None:
    system = MemoryFileSystem()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    for key, data in stored.items():
        system.pipe_file(key, data)


def _path(file: int) -> str:
    return os.readlink(f"/proc/self/fd/{file}")


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Record what the block does through `shards.files` and to the bucket."""
    kept, real = Recorder(root), {name: getattr(files, name) for name in vars(files)}

    def create(path, fill):
        def filled(file):
            fill(file)
            file.flush()
            kept.add("append", path, path.read_bytes())

        real["create"](path, filled)

    def opened(path):
        kept.add("append", path)
        return real["opened"](path)

    def append(file, data):
        written = real["append"](file, data)
        kept.add("append", _path(file), bytes(data[:written]))
        return written

    def cut(file, length):
        real["cut"](file, length)
        kept.add("cut", _path(file), length)

    def sync(file):
        kept.add("sync", _path(file))

    def sync_folder(path):
        kept.add("sync_folder", path)

    def rename(path, target):
        real["rename"](path, target)
        kept.add("rename", path, os.path.relpath(target, root))

    def link(path, target):
        real["link"](path, target)
        kept.add("link", path, os.path.relpath(target, root))

    def remove(path):
        real["remove"](path)
        kept.add("remove", path)

    def remove_folder(path):
        inside = sorted(path.rglob("*"), reverse=True)
        real["remove_folder"](path)
        for each in (*inside, path):
            kept.add("remove", each)
            kept.folders.discard(os.path.relpath(each, root))

    put, delete = MemoryFileSystem.pipe_file, MemoryFileSystem.rm_file

    def answered():
        kept.requests += 1
        if kept.lose == kept.requests:
            raise ConnectionResetError("the reply is lost")

    def pipe_file(self, path, value, mode="overwrite", **options):
        put(self, path, value, mode=mode)
        kept.add("put", self._strip_protocol(path), bytes(value))
        answered()

    def rm_file(self, path):
        delete(self, path)
        kept.add("delete", self._strip_protocol(path))
        answered()

    with pytest.MonkeyPatch.context() as patch:
        for name, function in list(locals().items()):
            if name in real and callable(function) and name not in ("real", "kept"):
                patch.setattr(files, name, function)
        patch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
        patch.setattr(MemoryFileSystem, "rm_file", rm_file)
        patch.setattr(objects, "PAUSES", (0.0,) * 3)
        yield kept


def laid(left: Left, folder: Path) -> None:
    """Make `folder` and the bucket what the crash left."""
    folder.mkdir()
    for name, data in left.disk.items():
        path = folder / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    _set_bucket(left.bucket)


def walk(
    tmp_path: Path,
    work: Callable[[Path, Callable[[Any], None]], None],
    recover: Callable[[Path, tuple[Any, ...]], Any],
) -> int:
    """Crash `work(folder, promise)` everywhere, `recover(folder, promised)` each time; count.

    `recover` asserts what must hold. A state that looks as an earlier one with the same promises is
    recovered once. Where there is a bucket, the work is also done once for each lost reply, which
    it must survive.
    """
    live, seen, points = tmp_path / "live", set(), 0
    live.mkdir()
    _set_bucket({})
    with recorded(live) as kept:
        work(live, kept.promise)
    for left in kept.states():
        points += 1
        key = repr((sorted(left.disk.items()), sorted(left.bucket.items()), left.promised))
        if key not in seen:
            seen.add(key)
            folder = tmp_path / f"{left.number}-{PARTS.index(left.part)}"
            laid(left, folder)
            _recovered(recover, folder, left.promised, f"{left.number} {left.effect}: {left.part}")
    for number in range(1, kept.requests + 1):
        points += 1
        folder = tmp_path / f"reply-{number}"
        folder.mkdir()
        _set_bucket({})
        with recorded(folder) as again:
            again.lose = number
            work(folder, again.promise)
        promised = tuple(value for kind, _, value in again.effects if kind == "promise")
        _recovered(recover, folder, promised, f"reply {number} lost")
    print(f"crash points: {points} of {points} ({len(seen)} different states)")
    return points


def _recovered(recover: Callable, folder: Path, promised: tuple[Any, ...], where: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "PAUSES", (0.0,) * 3)
        patch.setattr(os, "fsync", lambda file: None)  # this disk is not going to stop
        try:
            recover(folder, promised)
        except BaseException as error:
            error.add_note(f"crash point: {where}")
            raise
