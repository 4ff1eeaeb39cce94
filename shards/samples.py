"""List the samples of a split, and read single samples."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import NamedTuple

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
    ratio: float = 0.0  # of a mask: share of the hole


def samples(manifest: Manifest, split: str) -> list[ImageRecord]:
    """Return the samples of a split in key order. Raises ValueError for an unknown split."""
    records = []
    for shard in shards_of(manifest, split):
        index = read_index(manifest, split, shard)
        url = manifest.shard_url(split, shard)
        names = ["sample_id", "offset", "size", "crc32", "content_hash"]
        names += [name for name in ("bucket", "ratio") if name in index.column_names]
        for key, *row in zip(*(index[name].to_pylist() for name in names)):
            records.append(ImageRecord(key, url, *row))
    return sorted(records)


def archive(manifest: Manifest, split: str) -> str | None:
    """Return the top folder of a split's source, such as `data_large`; None if it is not one.

    Of the first shard, because samples are shuffled over all.
    """
    index = read_index(manifest, split, shards_of(manifest, split)[0])
    tops = {path.partition("/")[0] if "/" in path else None for path in index["src"].to_pylist()}
    return tops.pop() if len(tops) == 1 else None


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
