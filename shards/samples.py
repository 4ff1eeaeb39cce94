"""The samples of a split, by index rows, and their bytes."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from shards import store
from shards.manifest import Manifest, read_index


class ImageRecord(NamedTuple):
    """One member of a sharded set and where its bytes lie."""

    key: int
    url: str
    offset: int
    size: int
    crc32: int
    content: int  # hash of the bytes
    bucket: str = ""


def samples(manifest: Manifest, split: str) -> list[ImageRecord]:
    """A split's samples in key order. ValueError lists the splits there are."""
    if split not in manifest.splits:
        raise ValueError(
            f"{store.display(manifest.url)} has no split {split!r}: set split= to one of "
            f"{', '.join(sorted(manifest.splits))}"
        )
    found = []
    for shard in manifest.splits[split].shards:
        index = read_index(manifest, split, shard)
        url = manifest.shard_url(split, shard)
        names = ["sample_id", "offset", "size", "crc32", "content_hash"]
        columns = [index[name].to_pylist() for name in names]
        bucket = index["bucket"] if "bucket" in index.column_names else pa.nulls(len(index))
        for row in zip(*columns, bucket.to_pylist()):
            found.append(ImageRecord(row[0], url, row[1], row[2], row[3], row[4], row[5] or ""))
    return sorted(found)


@lru_cache(maxsize=64)
def payload(sample: ImageRecord) -> bytes:
    """The sample's bytes as they are stored, checked; ValueError where they are other bytes."""
    for _ in range(3):
        data = store.read(sample.url, sample.offset, sample.offset + sample.size)
        if zlib.crc32(data) == sample.crc32:
            return data
    raise ValueError(
        f"sample {sample.key} of {store.display(sample.url)} has other bytes than its index "
        "says, read three times: `shard verify` the set"
    )
