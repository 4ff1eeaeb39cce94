"""Read and check samples: by `pread` from local tars, by whole blocks from object storage.

The stream announces the windows that it needs next, in order: for local tars that is a hint to the
page cache, for object storage it starts the reads. The length and crc32 of every sample are
checked; a sample that fails is read up to three times, then an error names it.
"""

import contextlib
import os
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import NamedTuple, Protocol

from shards import store
from shards.lookup import TRIES, Indexes, IndexRow, Rows, SampleError
from shards.manifest import Manifest
from shards.order import Piece, Window
from shards.ranged import Ranges

OPEN_FILES = 128
FETCHERS = 4
READ_AHEAD = 16 << 20


class OpenWindow(Protocol):
    """An announced window; each sample can be taken once, from any thread."""

    def take(self, turn: int) -> IndexRow: ...


class Reader(Protocol):
    indexes: Indexes

    def expect(self, window: Window, uses: int) -> OpenWindow:
        """Announce that `uses` samples of `window` will be taken; called in order of need."""
        ...

    def sample(self, shard: int, row: int) -> IndexRow:
        """Read one sample."""
        ...

    def wants_more(self) -> bool:
        """Return whether announcing further ahead would help."""
        ...

    def close(self) -> None: ...


def open_reader(manifest: Manifest, split: str, read_ahead: int = READ_AHEAD) -> Reader:
    """Open a reader for the storage of the split's tars. ValueError for an unknown split."""
    indexes = Indexes(manifest, split)
    if all(store.is_local(url) for url in indexes.urls):
        return LocalReader(indexes)
    return RemoteReader(indexes, read_ahead)


class LocalReader:
    """One `pread` per sample."""

    def __init__(self, indexes: Indexes) -> None:
        self.indexes = indexes
        self._lock = threading.Lock()
        self._files: dict[int, _Tar] = {}  # the oldest first

    def expect(self, window: Window, uses: int) -> OpenWindow:
        for piece in window.pieces:
            start, stop = _span(self.indexes[piece.shard], piece)
            file = self._file(piece.shard)
            os.posix_fadvise(file.number, start, stop - start, os.POSIX_FADV_WILLNEED)
        return _LocalWindow(self, window)

    def sample(self, shard: int, row: int) -> IndexRow:
        rows = self.indexes[shard]
        file = self._file(shard)
        for _ in range(TRIES):
            data = os.pread(file.number, int(rows.size[row]), int(rows.offset[row]))
            wrong = rows.check(row, data)
            if not wrong:
                return rows.sample(shard, row, data)
        raise SampleError(f"{self.indexes.where(shard, row)}: {wrong}, read {TRIES} times")

    def wants_more(self) -> bool:
        return False

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def _file(self, shard: int) -> "_Tar":
        return self._files.get(shard) or self._open(shard)

    def _open(self, shard: int) -> "_Tar":
        url, length = self.indexes.urls[shard], self.indexes.shards[shard].bytes
        try:
            file = _Tar(store.local(url))
        except FileNotFoundError as error:
            raise ValueError(f"{url}: no such tar; restore it or shard the set again") from error
        size = os.fstat(file.number).st_size
        if size != length:
            raise ValueError(
                f"{url}: {size} bytes, but {length} in its manifest; shard the set again"
            )
        with self._lock:
            self._files[shard] = file
            if len(self._files) > OPEN_FILES:
                self._files.pop(next(iter(self._files)))
        return file


class _Tar:
    """An open file, closed when the last reference to it is dropped."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _LocalWindow(NamedTuple):
    reader: LocalReader
    window: Window

    def take(self, turn: int) -> IndexRow:
        return self.reader.sample(*self.window.locate(turn))


class RemoteReader:
    """One ranged read per block of a window, ahead of need and outside the decoding threads.

    In memory are the samples of open windows that are not taken yet, and at most `read_ahead`
    bytes of windows of which no sample is taken yet. A window that is needed now is read even
    beyond that budget.
    """

    def __init__(self, indexes: Indexes, read_ahead: int) -> None:
        self.indexes, self.read_ahead = indexes, read_ahead
        self._ranges = Ranges(FETCHERS)
        self._untouched = 0
        self._wake = threading.Condition()
        self._queue: deque[_RemoteWindow] = deque()
        self._open: set[Future[list[IndexRow | None]]] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def expect(self, window: Window, uses: int) -> OpenWindow:
        held = _RemoteWindow(self, window, uses)
        with self._wake:
            if self._closed:
                raise ValueError("the stream is closed")
            self._untouched += held.bytes
            self._open.add(held.samples)
            self._queue.append(held)
            if len(self._threads) < FETCHERS:
                thread = threading.Thread(target=self._work, name="shards-fetch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()
        return held

    def sample(self, shard: int, row: int) -> IndexRow:
        return self._piece(Piece(shard, row, 1))[0]

    def wants_more(self) -> bool:
        return self._untouched < self.read_ahead

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._queue.clear()
            for pending in self._open:
                with contextlib.suppress(InvalidStateError):
                    pending.set_exception(ValueError("the stream is closed"))
            self._open.clear()
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(timeout=0.2)  # a thread in a stalled read ends later by itself
        self._ranges.close()

    def touched(self, held: "_RemoteWindow") -> None:
        with self._wake:
            self._untouched -= held.bytes

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                held = self._queue.popleft()
            self._fetch(held)
            with self._wake:
                self._open.discard(held.samples)
            del held

    def _fetch(self, held: "_RemoteWindow") -> None:
        try:
            pieces = [self._piece(piece) for piece in held.window.pieces]
            samples = [sample for piece in pieces for sample in piece]
            answer = [samples[place] for place in held.window.order]
            with contextlib.suppress(InvalidStateError):  # closed meanwhile
                held.samples.set_result(answer)
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                held.samples.set_exception(error)

    def _piece(self, piece: Piece) -> list[IndexRow]:
        """Return the samples of a piece, each its own copy, so that it is freed once used."""
        rows = self.indexes[piece.shard]
        start, stop = _span(rows, piece)
        for _ in range(TRIES):
            try:
                block = memoryview(self._ranges.read(self.indexes.urls[piece.shard], start, stop))
            except EOFError as error:
                row, wrong = piece.row, str(error)
                continue
            samples = []
            for row in range(piece.row, piece.row + piece.samples):
                offset = int(rows.offset[row]) - start
                data = bytes(block[offset : offset + int(rows.size[row])])
                wrong = rows.check(row, data)
                if wrong:
                    break
                samples.append(rows.sample(piece.shard, row, data))
            else:
                return samples
        raise SampleError(f"{self.indexes.where(piece.shard, row)}: {wrong}, read {TRIES} times")


class _RemoteWindow:
    def __init__(self, reader: RemoteReader, window: Window, uses: int) -> None:
        self.window, self.samples = window, Future[list[IndexRow | None]]()
        shards = reader.indexes.shards
        self.bytes = sum(
            piece.samples * shards[piece.shard].bytes // shards[piece.shard].samples
            for piece in window.pieces
        )
        self._reader: RemoteReader | None = reader
        self._left, self._lock = uses, threading.Lock()

    def take(self, turn: int) -> IndexRow:
        samples = self.samples.result()
        with self._lock:
            if self._reader is not None:
                self._reader.touched(self)
                self._reader = None
            sample, samples[turn] = samples[turn], None
            self._left -= 1
            if not self._left:  # other samples were used before this run, or are other ranks'
                samples.clear()
        assert sample is not None, "each sample is taken once"
        return sample


def _span(rows: Rows, piece: Piece) -> tuple[int, int]:
    """Return the bytes [start, stop) of the tar that hold a piece's samples."""
    last = piece.row + piece.samples - 1
    return int(rows.offset[piece.row]), int(rows.offset[last]) + int(rows.size[last])
