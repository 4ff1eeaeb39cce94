"""The indexes of a split: where each sample is stored; read shard by shard on first use."""

import threading
import zlib
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from shards import store
from shards.manifest import Manifest, Shard, read_index

TRIES = 3
INDEX_ROWS = 2_000_000  # kept at most: 20 bytes each, more in shards above 2 GiB


class SampleError(OSError):
    """The bytes of a sample differ from its index every time they are read."""


class IndexRow(NamedTuple):
    key: int
    data: bytes
    shard: int
    row: int
    shape: tuple[int, int] | None  # height, width in our sets: upright JPEGs; None in other sets


class Rows(NamedTuple):
    """The columns of one shard's index that reading needs, one entry per sample, in small types."""

    key: np.ndarray  # int64, int32 where they fit
    offset: np.ndarray  # of the payload, int64 or int32
    size: np.ndarray  # int32
    crc32: np.ndarray  # uint32
    height: np.ndarray | None = None  # uint16 or int32; None if the header of each sample decides
    width: np.ndarray | None = None

    def sample(self, shard: int, row: int, data: bytes) -> IndexRow:
        shape = None
        if self.height is not None and self.width is not None:
            shape = int(self.height[row]), int(self.width[row])
        return IndexRow(int(self.key[row]), data, shard, row, shape)

    def check(self, row: int, data: bytes) -> str:
        """Return what is wrong with a sample's bytes; empty if nothing is."""
        if zlib.crc32(data) == self.crc32[row] and len(data) == self.size[row]:
            return ""
        if len(data) != self.size[row]:
            return f"{len(data)} bytes of {self.size[row]}"
        return "its crc32 differs from the index"


def shards_of(manifest: Manifest, split: str) -> tuple[Shard, ...]:
    """Return the shards of a split. Raises ValueError for an unknown split."""
    if split not in manifest.splits:
        raise ValueError(
            f"{store.display(manifest.url)} has no split {split!r}: "
            f"set split= to one of {', '.join(sorted(manifest.splits))}"
        )
    return manifest.splits[split].shards


class Indexes:
    """The split's indexes, read on first use; the oldest are dropped above INDEX_ROWS."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.manifest, self.split = manifest, split
        self.shards = shards_of(manifest, split)
        self.urls = [manifest.shard_url(split, shard) for shard in self.shards]
        self._lock = threading.Lock()
        self._loading: dict[int, Future[Rows]] = {}
        self._kept: dict[int, Rows] = {}  # the oldest first
        self._rows = 0

    def __getitem__(self, shard: int) -> Rows:
        rows = self._kept.get(shard)  # without the lock: every thread does this for every sample
        return self._load(shard) if rows is None else rows

    def _load(self, shard: int) -> Rows:
        with self._lock:
            first = shard not in self._loading
            loading = self._loading.setdefault(shard, Future())
        if first:
            try:
                rows = self._read(shard)
                with self._lock:
                    self._kept[shard] = rows
                    self._rows += len(rows.key)
                    while self._rows > INDEX_ROWS and len(self._kept) > 1:
                        self._rows -= len(self._kept.pop(next(iter(self._kept))).key)
                loading.set_result(rows)
            except BaseException as error:
                loading.set_exception(error)
            with self._lock:
                del self._loading[shard]
        return loading.result()

    def _read(self, shard: int) -> Rows:
        entry = self.shards[shard]
        for left in reversed(range(TRIES)):
            try:
                table = read_index(self.manifest, self.split, entry)
                break
            except ValueError:  # may be a fault of the transfer: read it again
                if not left:
                    raise
        names = ["sample_id", "offset", "size", "crc32"]
        names += ["height", "width"] if self.manifest.kind == "images" else []
        columns = [_smallest_type(table[name].to_numpy()) for name in names]
        rows = Rows(*columns)
        if len(rows.key) and int((rows.offset + rows.size.astype(np.int64)).max()) > entry.bytes:
            raise ValueError(
                f"{store.display(self.urls[shard])}: its index points beyond its "
                f"{entry.bytes} bytes; shard the set again"
            )
        return rows

    def where(self, shard: int, row: int) -> str:
        """Return the shard, key and offset of a sample, for messages."""
        rows, url = self[shard], store.display(self.urls[shard])
        return f"{url}: sample {rows.key[row]:09d} at byte {rows.offset[row]}"


def _smallest_type(column: np.ndarray) -> np.ndarray:
    """Return a copy in the smallest integer type: 1.8 million samples must fit into memory."""
    most = int(column.max(initial=0))
    if column.dtype == np.uint32:
        return column.copy()
    return column.astype(np.uint16 if most < 2**16 else np.int32 if most < 2**31 else np.int64)
