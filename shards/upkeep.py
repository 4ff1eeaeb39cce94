"""Maintain written sets: verify and describe them, find the leftovers of killed writers."""

import hashlib
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards import objects, store
from shards.manifest import Manifest, Shard, read_index

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}


# --- verify ---------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """The result of verifying one shard."""

    split: str
    shard: str
    samples: int
    bytes: int
    faults: tuple[str, ...]


def verify(manifest: Manifest, *, every_byte: bool = False, workers: int = 1) -> Iterator[Checked]:
    """Check every shard against the manifest: length and index, or the checksums of all bytes."""

    def check(place: tuple[str, Shard]) -> Checked:
        split, shard = place
        faults = tuple(_faults(manifest, split, shard, every_byte))
        return Checked(split, shard.name, shard.samples, shard.bytes, faults)

    places = [(split, shard) for split, s in manifest.splits.items() for shard in s.shards]
    with ThreadPoolExecutor(max(1, workers)) as pool:  # I/O and hashing release the GIL
        for start in range(0, len(places), 4 * max(1, workers)):
            yield from pool.map(check, places[start : start + 4 * max(1, workers)])


def _faults(manifest: Manifest, split: str, shard: Shard, every_byte: bool) -> Iterator[str]:
    try:
        index = read_index(manifest, split, shard)
        offset, size = index["offset"].to_numpy(), index["size"].to_numpy()
        if len(offset) and int((offset + size).max()) > shard.bytes:
            yield "its index points beyond its end"
        url = manifest.shard_url(split, shard)
        length = store.size(url)
        if length != shard.bytes:
            yield f"{length} bytes, but {shard.bytes} in the manifest"
        elif every_byte:
            tar = memoryview(store.read(url))
            if shard.sha256 and hashlib.sha256(tar).hexdigest() != shard.sha256:
                yield "its sha256 differs"
            sums = index["crc32"].to_numpy()
            for i, (start, count) in enumerate(zip(offset.tolist(), size.tolist())):
                if zlib.crc32(tar[start : start + count]) != sums[i]:
                    yield f"sample {index['key'][i]} is damaged"
    except FileNotFoundError:
        yield "missing"
    except ValueError as error:
        yield str(error)


# --- info -----------------------------------------------------------------------------------------


def info(manifest: Manifest) -> dict[str, Any]:
    """Return statistics of the set, from the manifest, the indexes and the rejects."""
    splits = {}
    for name, split in manifest.splits.items():
        names = ["width", "height", "size", "content_hash"]
        parts = [read_index(manifest, name, shard).select(names) for shard in split.shards]
        width, height, size, content = (c.to_numpy() for c in pa.concat_tables(parts).columns)
        short = np.minimum(width, height)
        splits[name] = {
            "samples": split.samples,
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
            "mean_image_bytes": round(float(size.mean()), 1),
            "short_side": [int(short.min()), int(np.median(short)), int(short.max())],
            "duplicates": split.samples - len(np.unique(content)),
        }
    return {
        "url": store.display(manifest.url),
        "name": manifest.name,
        "kind": manifest.kind,
        "digest": manifest.digest,
        "splits": splits,
        "rejects": rejects(manifest.url),
    }


def rejects(url: str) -> dict[str, int]:
    """Return the number of rejected files, by reason."""
    try:
        data = store.read(store.join(url, "rejects.parquet"))
    except FileNotFoundError:
        return {}
    counts = pc.value_counts(pq.read_table(BytesIO(data))["reason"])
    return dict(Counter({str(c["values"]): c["counts"].as_py() for c in counts}).most_common())


# --- gc -------------------------------------------------------------------------------------------


class Orphan(NamedTuple):
    """An unfinished upload or a temporary file of a killed writer."""

    url: str
    kind: str  # upload, file
    age: float  # seconds
    upload: objects.Upload | None = None


def parse_age(text: str) -> float:
    """Parse an age such as `36h` or `7d` to seconds, at least a day: writers may still run."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise ValueError(f"invalid older_than={text!r}: expected a duration such as 24h or 7d")
    value = float(match[1]) * _UNITS[match[2]]
    if value < DAY:
        raise ValueError(f"older_than={text} is less than 24h, and a writer may still be running")
    return value


def orphans(url: str, older_than: float) -> list[Orphan]:
    """Return leftovers of killed writers in the sharded set `url`, older than `older_than` seconds.

    Raises ValueError if there is no sharded set at `url`, finished or not.
    """
    if not any(store.exists(store.join(url, n)) for n in ("plan.json", manifests.FILE)):
        raise ValueError(
            f"{store.display(url)} is not a sharded set, finished or not: give the URL of a set"
        )
    if store.is_local(url):
        leftovers = list(_temporary(url))
    elif url.startswith(("s3://", "s3a://")):
        now = datetime.now(UTC)
        uploads = objects.unfinished_uploads(url.rstrip("/") + "/")
        leftovers = [Orphan(u.url, "upload", (now - u.started).total_seconds(), u) for u in uploads]
    else:
        leftovers = []
    return [orphan for orphan in leftovers if orphan.age > older_than]


def _temporary(url: str) -> Iterator[Orphan]:
    now = time.time()
    for folder, _, names in os.walk(store.local(url)):
        for name in names:
            path = os.path.join(folder, name)
            if store.TEMPORARY.match(name):
                yield Orphan(path, "file", now - os.stat(path).st_mtime)


def discard(orphan: Orphan) -> None:
    """Remove an orphan; ignores one that is gone already."""
    if orphan.upload is not None:
        objects.abort(orphan.upload)
    else:
        store.remove(orphan.url)
