"""A set after it was written: is it whole, what is in it, what did killed writers leave behind."""

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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards import objects, store
from shards.manifest import Manifest, Shard, read_index

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}


# --- verify ---------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """One shard that was looked at."""

    split: str
    shard: str
    samples: int
    bytes: int
    faults: tuple[str, ...]


def verify(manifest: Manifest, *, every_byte: bool = False, workers: int = 1) -> Iterator[Checked]:
    """Every shard against the manifest: its length and its index, or every byte's checksums."""

    def check(place: tuple[str, Shard]) -> Checked:
        split, shard = place
        faults = tuple(_faults(manifest, split, shard, every_byte))
        return Checked(split, shard.name, shard.samples, shard.bytes, faults)

    places = [(split, shard) for split, s in manifest.splits.items() for shard in s.shards]
    with ThreadPoolExecutor(max(1, workers)) as pool:  # waiting and hashing both free the GIL
        for start in range(0, len(places), 4 * max(1, workers)):
            yield from pool.map(check, places[start : start + 4 * max(1, workers)])


def _faults(manifest: Manifest, split: str, shard: Shard, every_byte: bool) -> Iterator[str]:
    try:
        index = read_index(manifest, split, shard)
        offset, size = index["offset"].to_numpy(), index["size"].to_numpy()
        if len(offset) and int((offset + size).max()) > shard.bytes:
            yield "its index points past its end"
        url = manifest.shard_url(split, shard)
        length = store.size(url)
        if length != shard.bytes:
            yield f"{length} bytes, the manifest says {shard.bytes}"
        elif every_byte:
            tar = memoryview(store.read(url))
            if shard.sha256 and hashlib.sha256(tar).hexdigest() != shard.sha256:
                yield "its sha256 differs"
            sums = index["crc32"].to_numpy()
            for i, (start, count) in enumerate(zip(offset.tolist(), size.tolist())):
                if zlib.crc32(tar[start : start + count]) != sums[i]:
                    yield f"sample {index['key'][i]} is damaged"
    except FileNotFoundError:
        yield "gone"
    except ValueError as error:
        yield str(error)


# --- info -----------------------------------------------------------------------------------------


def info(manifest: Manifest) -> dict[str, Any]:
    """What the set holds, read from the manifest, the indexes and the rejects."""
    splits = {}
    for name, split in manifest.splits.items():
        tables = [
            read_index(manifest, name, shard).select(["width", "height", "size", "content_hash"])
            for shard in split.shards
        ]
        columns = {
            key: np.concatenate([table[key].to_numpy() for table in tables])
            for key in ("width", "height", "size", "content_hash")
        }
        short = np.minimum(columns["width"], columns["height"])
        splits[name] = {
            "samples": split.samples,
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
            "mean_image_bytes": round(float(columns["size"].mean()), 1),
            "short_side": [int(short.min()), int(np.median(short)), int(short.max())],
            "duplicates": split.samples - len(np.unique(columns["content_hash"])),
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
    """How many files were rejected, by reason."""
    try:
        data = store.read(store.join(url, "rejects.parquet"))
    except FileNotFoundError:
        return {}
    counts = pc.value_counts(pq.read_table(BytesIO(data))["reason"])
    return dict(Counter({str(c["values"]): c["counts"].as_py() for c in counts}).most_common())


# --- gc -------------------------------------------------------------------------------------------


class Orphan(NamedTuple):
    """What a killed writer left: an open upload, or a temporary file."""

    url: str
    kind: str  # upload, file
    age: float  # seconds
    upload: objects.Upload | None = None


def parse_age(text: str) -> float:
    """`36h`, `7d`, `90m` in seconds. Raises ValueError below a day: a live writer may own it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise ValueError(f"older_than={text!r} is no duration; give for example 24h or 7d")
    value = float(match[1]) * _UNITS[match[2]]
    if value < DAY:
        raise ValueError(f"older_than={text} is less than 24h, and a writer may still be at work")
    return value


def orphans(url: str, older_than: float) -> list[Orphan]:
    """What killed writers left below the sharded set `url`, older than `older_than` seconds.

    Raises ValueError where no sharded set was begun: nothing there is ours to judge.
    """
    if not any(store.exists(store.join(url, n)) for n in ("plan.json", manifests.FILE)):
        raise ValueError(
            f"{store.display(url)}: no sharded set was begun there, so nothing is ours to remove"
        )
    if store.is_local(url):
        found = list(_temporary(url))
    elif url.startswith(("s3://", "s3a://")):
        now = datetime.now(UTC)
        uploads = objects.unfinished_uploads(url.rstrip("/") + "/")
        found = [Orphan(u.url, "upload", (now - u.started).total_seconds(), u) for u in uploads]
    else:
        found = []
    return [orphan for orphan in found if orphan.age > older_than]


def _temporary(url: str) -> Iterator[Orphan]:
    now = time.time()
    for folder, _, names in os.walk(store.local(url)):
        for name in names:
            path = os.path.join(folder, name)
            if store.TEMPORARY.match(name):
                yield Orphan(path, "file", now - os.stat(path).st_mtime)


def discard(orphan: Orphan) -> None:
    """Removes one orphan; one that is gone already is no error."""
    if orphan.upload is not None:
        objects.abort(orphan.upload)
    else:
        store.remove(orphan.url)
