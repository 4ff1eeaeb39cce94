"""Where each sample of a split lies: the indexes, read shard by shard when first touched."""

import threading
import zlib
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import store
from shards.manifest import Manifest, Shard, read_index

TRIES = 3
INDEX_ROWS = 2_000_000  # held at most: 20 bytes each, more in shards above 2 GiB


class SampleError(OSError):
    """A sample whose bytes are not the ones that were indexed, however often they are read."""


class IndexRow(NamedTuple):
    key: int
    data: bytes
    shard: int
    row: int
    height: int  # pixels, before EXIF turns it
    width: int
    plain: bool  # an upright gray or RGB JPEG, which needs no care


class Rows(NamedTuple):
    """What reading needs of one shard's index, one entry a sample, as small as it goes."""

    key: np.ndarray  # int64, int32 where they fit
    offset: np.ndarray  # of the payload, int64 or int32
    size: np.ndarray  # int32
    crc32: np.ndarray  # uint32
    height: np.ndarray  # uint16 or int32
    width: np.ndarray
    plain: np.ndarray  # bool, of one entry where it holds for all

    def sample(self, shard: int, row: int, data: bytes) -> IndexRow:
        return IndexRow(
            int(self.key[row]),
            data,
            shard,
            row,
            int(self.height[row]),
            int(self.width[row]),
            bool(self.plain[row if len(self.plain) > 1 else 0]),
        )

    def check(self, row: int, data: bytes) -> str:
        """What is wrong with a sample's bytes; empty when nothing is."""
        if zlib.crc32(data) == self.crc32[row] and len(data) == self.size[row]:
            return ""
        if len(data) != self.size[row]:
            return f"{len(data)} bytes of {self.size[row]}"
        return "its crc32 differs from the index"


def shards_of(manifest: Manifest, split: str) -> tuple[Shard, ...]:
    """The shards of a split. Raises ValueError for one that the set has not."""
    if split not in manifest.splits:
        raise ValueError(
            f"{store.display(manifest.url)} has no split {split!r}: "
            f"choose one of {', '.join(manifest.splits)}"
        )
    return manifest.splits[split].shards


class Indexes:
    """The split's indexes, read when first touched and kept while there is room."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.manifest, self.split = manifest, split
        self.shards = shards_of(manifest, split)
        self.urls = [manifest.shard_url(split, shard) for shard in self.shards]
        self._lock = threading.Lock()
        self._read_by: dict[int, Future[Rows]] = {}
        self._kept: dict[int, Rows] = {}  # the longest kept first
        self._rows = 0

    def __getitem__(self, shard: int) -> Rows:
        found = self._kept.get(shard)  # without the lock: once a sample, by every thread
        return self._first_time(shard) if found is None else found

    def _first_time(self, shard: int) -> Rows:
        with self._lock:
            mine = shard not in self._read_by
            reading = self._read_by.setdefault(shard, Future())
        if mine:
            try:
                rows = self._read(shard)
                with self._lock:
                    self._kept[shard] = rows
                    self._rows += len(rows.key)
                    while self._rows > INDEX_ROWS and len(self._kept) > 1:
                        self._rows -= len(self._kept.pop(next(iter(self._kept))).key)
                reading.set_result(rows)
            except BaseException as error:
                reading.set_exception(error)
            with self._lock:
                del self._read_by[shard]
        return reading.result()

    def _read(self, shard: int) -> Rows:
        entry = self.shards[shard]
        for left in reversed(range(TRIES)):
            try:
                table = read_index(self.manifest, self.split, entry)
                break
            except ValueError:  # one flipped byte on the way is no wrong index
                if not left:
                    raise
        key, offset, size, crc32, height, width = (
            _smallest_type(table[name].to_numpy())
            for name in ("sample_id", "offset", "size", "crc32", "height", "width")
        )
        rows = Rows(key, offset, size, crc32, height, width, _plain(table))
        if len(rows.key) and int((rows.offset + rows.size.astype(np.int64)).max()) > entry.bytes:
            raise ValueError(
                f"{store.display(self.urls[shard])}: its index points past its {entry.bytes} "
                "bytes; shard the set again"
            )
        return rows

    def where(self, shard: int, row: int) -> str:
        """A sample's shard, key and offset, for messages."""
        rows, url = self[shard], store.display(self.urls[shard])
        return f"{url}: sample {rows.key[row]:09d} at byte {rows.offset[row]}"


def _smallest_type(column: np.ndarray) -> np.ndarray:
    """A copy of its own in the smallest type that holds it: 1.8 million samples are many."""
    most = int(column.max(initial=0))
    if column.dtype == np.uint32:
        return column.copy()
    return column.astype(np.uint16 if most < 2**16 else np.int32 if most < 2**31 else np.int64)


def _plain(table: pa.Table) -> np.ndarray:
    """Which rows are plain JPEG as far as the index knows; one entry for all of a shard of ours."""
    if "orientation" not in table.column_names:
        return np.array([False])
    upright = pc.equal(table["orientation"], 1)
    gray_or_rgb = pc.is_in(table["mode"], value_set=pa.array(["L", "RGB"]))
    plain = pc.fill_null(pc.and_(upright, gray_or_rgb), False).to_numpy()
    return plain[:1] if plain.all() else plain
