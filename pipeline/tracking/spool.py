"""Tracking events on disk, between the training loop that writes them and whoever sends them.

    spool/events-000001.jsonl   one event a line, appended; a torn last line is not an event yet
    spool/files/                pictures and artifacts that events point at
    spool/cursor.json           how far sending has come: {"segment", "offset"}
    spool/rejected.jsonl        events that the server will never take, with its reason
    spool/drain.lock            held by the one process that sends

Appending is a `write` to an open file: it survives a kill of the process at once; `sync` (called
from the sending thread every few seconds) makes it survive the machine. Sending twice adds nothing,
so the cursor needs no such care.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEGMENT_BYTES = 8 << 20
CURSOR = "cursor.json"
END = b'{"kind": "end", "t": 0}\n'


class Position(NamedTuple):
    """`offset` bytes of segment number `segment` lie behind."""

    segment: int
    offset: int


class Event(NamedTuple):
    """`position` is where the event begins, `after` where the next one does."""

    position: Position
    after: Position
    kind: str
    time_ms: int
    fields: dict[str, Any]


class Spool:
    """The writing side. A full disk raises nothing: it is counted in `lost`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost = 0
        self._lock = threading.Lock()
        self._retired: list[int] = []
        (folder / "files").mkdir(parents=True, exist_ok=True)
        last, sent = max(last_segment(folder), 1), read_cursor(folder)
        path = segment_path(folder, last)
        if sent.segment == last and sent.offset > (path.stat().st_size if path.exists() else 0):
            path.unlink(missing_ok=True)  # a copy older than its cursor: its bytes were sent
            last += 1
        self._open(last)
        if self._size:  # what a killed process left, perhaps with half a line at its end
            if not segment_path(folder, last).read_bytes().endswith(b"\n"):
                self._write(b"\n")
            self._next_segment()

    def append(self, kind: str, **fields: Any) -> bool:
        """Adds one event; `fields` must be JSON."""
        line = json.dumps({"kind": kind, "t": time.time_ns() // 1_000_000, **fields}) + "\n"
        with self._lock:
            try:
                if self._size > SEGMENT_BYTES:
                    self._next_segment()
                self._write(line.encode())
            except OSError:
                self.lost += 1
                return False
        return True

    def picture(self, pixels: np.ndarray) -> str | None:
        """Keeps a uint8 H×W×3 array for an event to point at; its file name, None if disk is full.

        Raw bytes: making a PNG here would cost the loop a hundred times more.
        """
        name = f"{time.time_ns()}-{pixels.shape[0]}x{pixels.shape[1]}.rgb"
        try:
            (self.folder / "files" / name).write_bytes(np.ascontiguousarray(pixels).data)
        except OSError:
            self.lost += 1
            (self.folder / "files" / name).unlink(missing_ok=True)
            return None
        return name

    def keep(self, path: Path) -> str | None:
        """Keeps a file as it is now (by hard link where the disk allows), in a folder of its own;
        that folder's name, None if the disk is full or nothing lies at `path`."""
        return self._held(path.name, lambda target: _link(path, target))

    def text(self, name: str, text: str) -> str | None:
        """Keeps `text` as a file `name`, as `keep` does."""
        return self._held(name, lambda target: target.write_text(text))

    def rotate(self) -> None:
        """Ends the current segment, so that it is never written again."""
        with self._lock:
            if self._size:
                self._next_segment()

    def sync(self) -> None:
        """fsync of what was appended since the last call; for another thread than the loop's."""
        with self._lock:
            retired, self._retired = self._retired, []
            if self._size != self._synced:  # type: ignore[has-type]
                retired.append(os.dup(self._file))
                self._synced = self._size
        for file in retired:
            with contextlib.suppress(OSError):  # a full disk is counted where the write fails
                os.fsync(file)
            os.close(file)

    def close(self) -> None:
        self.sync()
        with self._lock:
            os.close(self._file)

    def _held(self, name: str, fill: Callable[[Path], Any]) -> str | None:
        holder = self.folder / "files" / f"{time.time_ns()}"
        try:
            holder.mkdir()
            fill(holder / name)
        except OSError:
            self.lost += 1
            discard(self.folder, holder.name)
            return None
        return holder.name

    def _write(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, self._size)  # lest the next event join the torn one
            raise OSError(errno.ENOSPC, "short write")
        self._size += written

    def _next_segment(self) -> None:
        # Without this line a reader on another machine could see the next file before the last
        # bytes of this one, and go on too early.
        self._write(END)
        self._retired.append(self._file)
        self._open(self._number + 1)

    def _open(self, number: int) -> None:
        path = segment_path(self.folder, number)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._number, self._size = number, os.fstat(self._file).st_size
        self._synced = self._size


class Unsent:
    """The sending side: events from the cursor on, in order, a bounded number at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.position = read_cursor(folder)

    def read(self, limit: int = 1000, max_bytes: int = 1 << 20) -> list[Event]:
        """Up to `limit` events after the cursor; fewer once their lines pass `max_bytes`."""
        events: list[Event] = []
        segment, offset = self.position
        last = last_segment(self.folder)
        while segment <= last:
            ended = not segment_path(self.folder, segment).exists()
            for line in _lines(segment_path(self.folder, segment), offset):
                ended = line == END
                after = Position(segment + 1, 0) if ended else Position(segment, offset + len(line))
                events.append(_event(line, Position(segment, offset), after))
                offset = after.offset
                max_bytes -= len(line)
                if len(events) >= limit or max_bytes <= 0:
                    return events
            if not ended:
                break
            segment, offset = segment + 1, 0
        return events

    def advance(self, position: Position) -> None:
        """All before `position` was sent or set aside; segments wholly before it are removed."""
        done, self.position = self.position.segment, position
        write_json(self.folder / CURSOR, position._asdict())
        for number in range(done, position.segment):
            segment_path(self.folder, number).unlink(missing_ok=True)

    def reject(self, event: Event, reason: str) -> None:
        """Sets an event aside that will never be taken; its file stays."""
        record = {"kind": event.kind, "t": event.time_ms, **event.fields, "reason": reason}
        with open(self.folder / "rejected.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def count(self) -> int:
        """Events not sent yet."""
        segment, offset = self.position
        return sum(
            line != END
            for number in range(segment, last_segment(self.folder) + 1)
            for line in _lines(
                segment_path(self.folder, number), offset if number == segment else 0
            )
        )


@contextlib.contextmanager
def draining(folder: Path) -> Iterator[bool]:
    """Holds the right to send from this folder; yields False if another process has it."""
    with open(folder / "drain.lock", "a") as lock:
        try:
            # POSIX, not flock: a forked loader worker must not inherit it. Works over NFS too.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"events-{number:06d}.jsonl"


def last_segment(folder: Path) -> int:
    """The highest segment number in use or sent already; 0 for a fresh folder."""
    numbers = [int(p.stem.partition("-")[2]) for p in folder.glob("events-*.jsonl")]
    if (folder / CURSOR).exists():
        numbers.append(read_cursor(folder).segment)
    return max(numbers, default=0)


def read_cursor(folder: Path) -> Position:
    """How far sending has come. Without a cursor the beginning: sending again adds nothing."""
    try:
        saved = json.loads((folder / CURSOR).read_bytes())
        return Position(saved["segment"], saved["offset"])
    except (FileNotFoundError, ValueError, KeyError):
        return Position(1, 0)


def drop_sent(folder: Path) -> None:
    """Removes whole segments before the cursor with their files: another process has sent them."""
    sent = read_cursor(folder).segment
    for path in sorted(folder.glob("events-*.jsonl")):
        if path >= segment_path(folder, sent):
            return
        for line in _lines(path, 0):
            for name in _event(line, Position(0, 0), Position(0, 0)).fields.get("files", ()):
                discard(folder, name)
        path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Atomic for readers; not synced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def discard(folder: Path, name: str) -> None:
    """Removes a kept file or folder."""
    path = folder / "files" / name
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lines(path: Path, offset: int) -> Iterator[bytes]:
    """Whole lines from `offset` on; none where there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def _event(line: bytes, position: Position, after: Position) -> Event:
    try:
        fields = json.loads(line)
        return Event(position, after, fields.pop("kind"), int(fields.pop("t")), fields)
    except (ValueError, KeyError, AttributeError):
        # A line that a dying machine left: kept for the eye, never sent.
        return Event(position, after, "torn", 0, {"line": line.decode(errors="replace")})


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
