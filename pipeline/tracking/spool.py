"""Buffer tracking events on disk between the training loop and the process that sends them.

    spool/events-000001.jsonl   one event a line, appended; an incomplete last line does not count
    spool/files/                images and artifacts that events refer to
    spool/cursor.json           position of the first unsent event: {"segment", "offset"}
    spool/rejected.jsonl        events that the server rejected permanently, with the reason
    spool/drain.lock            held by the process that sends

Appending is a `write` to an open file, which survives a kill of the process; `sync`, called by the
sending thread every few seconds and by each checkpoint, makes it survive a crash of the machine. An
old cursor may come back, because sending an event twice adds nothing.
"""

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards import files
from shards.file_lock import locked

SEGMENT_BYTES = 8 << 20
CURSOR = "cursor.json"
END = b'{"kind": "end", "t": 0}\n'


class Position(NamedTuple):
    """The place after the first `offset` bytes of segment number `segment`."""

    segment: int
    offset: int


class Event(NamedTuple):
    """An event; the next one begins at `after`."""

    after: Position
    kind: str
    time_ms: int
    fields: dict[str, Any]


class Spool:
    """The writing side. Events that do not fit on a full disk are counted in `lost`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost = 0
        self._lock = threading.Lock()
        self._retired: list[tuple[int, Path]] = []  # unsynced: open file, its folder
        files.make_folder(folder / "files")
        last, sent = max(last_segment(folder), 1), read_cursor(folder)
        path = segment_path(folder, last)
        if sent.segment == last and sent.offset > (path.stat().st_size if path.exists() else 0):
            files.remove(path)  # the copy is older than its cursor: its events were sent
            last += 1
        self._open(last)
        for path in folder.glob("events-*.jsonl"):  # whose end a crash of the machine may have lost
            if path < segment_path(folder, last) and not (data := path.read_bytes()).endswith(END):
                files.append_to(path, b"\n" * (data[-1:] not in (b"", b"\n")) + END)
        if self._size:  # of a killed process, perhaps with an incomplete last line
            if not segment_path(folder, last).read_bytes().endswith(b"\n"):
                self._write(b"\n")
            self._next_segment()

    def append(self, kind: str, **fields: Any) -> bool:
        """Append one event, with JSON values; False if the disk is full."""
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

    def keep_image(self, pixels: np.ndarray) -> str | None:
        """Store a uint8 H×W×3 array; return its file name, None if the disk is full.

        It is stored raw: encoding a PNG would delay the training loop a hundred times longer.
        """
        name = f"{time.time_ns()}-{pixels.shape[0]}x{pixels.shape[1]}.rgb"
        return name if self._keep(name, np.ascontiguousarray(pixels).data) else None

    def artifact(self, path: str, data: bytes) -> None:
        """Store `data` in a new folder and append the event that logs it as the artifact `path`."""
        folder, _, name = path.rpartition("/")
        holder = f"{time.time_ns()}"
        if self._keep(f"{holder}/{name}", data):
            self.append("artifact", folder=folder, files=[holder])

    def rotate(self) -> None:
        """End the current segment, so that it does not change any more."""
        with self._lock:
            if self._size:
                self._next_segment()

    def sync(self) -> None:
        """Sync what was appended since the last call to disk; slow, so not in the loop's thread."""
        with self._lock:
            retired, self._retired = self._retired, []
            if self._size != self._synced:  # type: ignore[has-type]
                retired.append((os.dup(self._file), self.folder))
                self._synced = self._size
        for file, _ in retired:
            with contextlib.suppress(OSError):  # a full disk is counted where the write fails
                files.sync(file)
            os.close(file)
        for folder in {folder for _, folder in retired}:
            with contextlib.suppress(OSError):  # an artifact's: it was sent in the meantime
                files.sync_folder(folder)

    def close(self) -> None:
        self.sync()
        with self._lock:
            os.close(self._file)

    def _keep(self, name: str, data: bytes | memoryview) -> bool:
        path = self.folder / "files" / name
        try:
            files.make_folder(path.parent)
            file = files.opened(path)
            try:
                files.append_all(file, data)
            finally:
                with self._lock:
                    self._retired.append((file, path.parent))
        except OSError:
            self.lost += 1
            discard(self.folder, Path(name).parts[0])
            return False
        return True

    def _write(self, data: bytes) -> None:
        written = files.append(self._file, data)
        if written != len(data):
            files.cut(self._file, self._size)  # or the next event would join the incomplete one
            raise OSError(errno.ENOSPC, "short write")
        self._size += written

    def _next_segment(self) -> None:
        # Without this line a reader on another machine could see the next segment before the last
        # bytes of this one, and skip them.
        self._write(END)
        self._retired.append((self._file, self.folder))
        self._open(self._number + 1)

    def _open(self, number: int) -> None:
        path = segment_path(self.folder, number)
        self._file = files.opened(path)
        self._number, self._size = number, os.fstat(self._file).st_size
        self._synced = self._size


class Unsent:
    """The sending side: reads events in order from the cursor, a bounded number at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.position = read_cursor(folder)

    def read(self, limit: int = 1000, max_bytes: int = 1 << 20) -> list[Event]:
        """Return up to `limit` events after the cursor, fewer once they exceed `max_bytes`."""
        events: list[Event] = []
        segment, offset = self.position
        last = last_segment(self.folder)
        while segment <= last:
            path = segment_path(self.folder, segment)
            ended = not path.exists()
            for line in _lines(path, offset):
                ended, offset = line == END, offset + len(line)
                after = Position(segment + 1, 0) if ended else Position(segment, offset)
                events.append(_event(line, after))
                max_bytes -= len(line)
                if len(events) >= limit or max_bytes <= 0:
                    return events
            if not ended:
                break
            segment, offset = segment + 1, 0
        return events

    def advance(self, position: Position) -> None:
        """Move the cursor to `position` and remove the segments before it."""
        done, self.position = self.position.segment, position
        write_json(self.folder / CURSOR, position._asdict())
        for number in range(done, position.segment):
            files.remove(segment_path(self.folder, number))

    def reject(self, event: Event, reason: str) -> None:
        """Set an event aside that the server rejects permanently; its files are kept."""
        record = {"kind": event.kind, "t": event.time_ms, **event.fields, "reason": reason}
        files.append_to(self.folder / "rejected.jsonl", f"{json.dumps(record)}\n".encode())

    def count(self) -> int:
        """Count the unsent events."""
        segment, offset = self.position
        paths = [
            segment_path(self.folder, n) for n in range(segment, last_segment(self.folder) + 1)
        ]
        starts = [offset, *(0 for _ in paths)]
        return sum(line != END for path, at in zip(paths, starts) for line in _lines(path, at))


def draining(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Hold the lock for sending from this folder; yields False if another process holds it."""
    return locked(folder / "drain.lock", wait=False)


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"events-{number:06d}.jsonl"


def last_segment(folder: Path) -> int:
    """Return the highest segment number written or sent so far; 0 in a new folder."""
    numbers = [int(p.stem.partition("-")[2]) for p in folder.glob("events-*.jsonl")]
    if (folder / CURSOR).exists():
        numbers.append(read_cursor(folder).segment)
    return max(numbers, default=0)


def read_cursor(folder: Path) -> Position:
    """Read the cursor; without one, the beginning: sending an event twice adds nothing."""
    try:
        return Position(**json.loads((folder / CURSOR).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return Position(1, 0)


def drop_sent(folder: Path) -> None:
    """Remove the segments before the cursor with their files: another process has sent them."""
    sent = read_cursor(folder).segment
    for path in sorted(folder.glob("events-*.jsonl")):
        if path >= segment_path(folder, sent):
            return
        for line in _lines(path, 0):
            for name in _event(line, Position(0, 0)).fields.get("files", ()):
                discard(folder, name)
        files.remove(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    files.replace(path, json.dumps(value).encode())


def discard(folder: Path, name: str) -> None:
    """Remove a stored file or folder."""
    path = folder / "files" / name
    (files.remove_folder if path.is_dir() else files.remove)(path)


def _lines(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the complete lines from `offset` on; none if there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line


def _event(line: bytes, after: Position) -> Event:
    try:
        fields = json.loads(line)
        return Event(after, fields.pop("kind"), int(fields.pop("t")), fields)
    except (ValueError, KeyError, AttributeError):
        # The incomplete line of a crashed machine: set aside, never sent.
        return Event(after, "torn", 0, {"line": line.decode(errors="replace")})
