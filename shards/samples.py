"""List the samples of a split, and read single samples."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from shards import store
from shards.lookup import TRIES, shards_of
from shards.manifest import Manifest, read_index


class ImageRecord(NamedTuple):
    """One member of a sharded set and the place of its bytes."""

    key: int
    url: str
    offset: int
    size: int
    crc32: int
    content: int  # hash of the bytes
    bucket: str = ""


def samples(manifest: Manifest, split: str) -> list[ImageRecord]:
    """Return the samples of a split in key order. Raises ValueError for an unknown split."""
    records = []
    for shard in shards_of(manifest, split):
        index = read_index(manifest, split, shard)
        url = manifest.shard_url(split, shard)
        names = ["sample_id", "offset", "size", "crc32", "content_hash"]
        columns = [index[name].to_pylist() for name in names]
        bucket = index["bucket"] if "bucket" in index.column_names else pa.nulls(len(index))
        for row in zip(*columns, bucket.to_pylist()):
            records.append(ImageRecord(row[0], url, row[1], row[2], row[3], row[4], row[5] or ""))
    return sorted(records)


@lru_cache(maxsize=64)
def payload(sample: ImageRecord) -> bytes:
    """Read and check the stored bytes of a sample. Raises ValueError if they are damaged."""
    for _ in range(TRIES):
        data = store.read(sample.url, sample.offset, sample.offset + sample.size)
        if zlib.crc32(data) == sample.crc32:
            return data
    raise ValueError(
        f"{store.display(sample.url)}: the crc32 of sample {sample.key} differs from its index, "
        f"read {TRIES} times: check the set by `shard verify`"
    )
