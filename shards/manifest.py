"""The format of a sharded set: `manifest.json`, published last, and one Parquet index per shard.

    <url>/manifest.json                      opened by readers; without it the set does not exist
    <url>/<split>/shard-000000.tar           members {key:09d}.{ext}
    <url>/<split>/index/shard-000000.parquet offset, size and checksum of each member
    <url>/rejects.parquet                    files of the source that the set lacks, with reasons

The manifest has sorted keys and no times, so that its sha256, the digest of the set, depends only
on the bytes of the set.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import store

SCHEMA = 1
FILE = "manifest.json"
SHARD = re.compile(r"shard-\d{6}\.tar")
SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_PLACE = [
    ("sample_id", pa.int64()),  # unique in the set; the member's key is its nine digits
    ("shard", pa.int32()),
    ("key", pa.string()),
    ("src", pa.string()),  # its path in the source
    ("ext", pa.string()),
    ("offset", pa.int64()),  # of the payload, from the start of the tar
    ("size", pa.int32()),
    ("crc32", pa.uint32()),
    ("content_hash", pa.uint64()),  # blake2b-8 of the payload: equal for equal images
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("mode", pa.string()),
]
_IMAGE = [("orientation", pa.int8()), ("label", pa.int32())]
COLUMNS: dict[str, pa.Schema] = {
    "images": pa.schema([*_PLACE, *_IMAGE]),
    "external": pa.schema([*_PLACE, *_IMAGE]),
    "masks": pa.schema([*_PLACE, ("bucket", pa.string()), ("ratio", pa.float64())]),
}


@dataclass(frozen=True, slots=True)
class Shard:
    name: str  # shard-000000.tar; in an external set the tar's URL
    bytes: int
    samples: int
    sha256: str
    index_sha256: str
    number: int = field(compare=False, default=0)  # its index is index/shard-{number:06d}.parquet


@dataclass(frozen=True, slots=True)
class Split:
    samples: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    url: str
    name: str
    kind: str  # images, masks, external
    plan_sha256: str
    splits: Mapping[str, Split]
    digest: str  # sha256 of manifest.json's bytes

    def shard_url(self, split: str, shard: Shard) -> str:
        return shard.name if self.kind == "external" else store.join(self.url, split, shard.name)

    def index_url(self, split: str, shard: Shard) -> str:
        return store.join(self.url, split, "index", f"shard-{shard.number:06d}.parquet")


def encode(name: str, kind: str, plan_sha256: str, splits: Mapping[str, Split]) -> bytes:
    """Return the bytes of `manifest.json`."""
    listed = {
        split: {
            "samples": entry.samples,
            "shards": [
                {
                    "name": shard.name,
                    "bytes": shard.bytes,
                    "samples": shard.samples,
                    "sha256": shard.sha256,
                    "index_sha256": shard.index_sha256,
                }
                for shard in entry.shards
            ],
        }
        for split, entry in splits.items()
    }
    document = {
        "schema": SCHEMA,
        "name": name,
        "kind": kind,
        "plan_sha256": plan_sha256,
        "splits": listed,
    }
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()


def decode(data: bytes, url: str) -> Manifest:
    """Return the manifest in `data`. Raises ValueError naming `url` when it is not one."""
    where = store.display(store.join(url, FILE))
    try:
        document = json.loads(data)
        schema = document["schema"]
        if not isinstance(schema, int) or schema > SCHEMA:
            raise ValueError(
                f"{where}: schema {schema!r}, but this version reads up to {SCHEMA}; "
                "use the version that wrote it, or a newer one"
            )
        kind = document["kind"]
        if kind not in COLUMNS:
            raise ValueError(
                f"{where}: unknown kind {kind!r}: expected one of {', '.join(COLUMNS)}"
            )
        splits = {
            name: Split(
                int(entry["samples"]),
                tuple(_shard(where, kind, i, item) for i, item in enumerate(entry["shards"])),
            )
            for name, entry in document["splits"].items()
        }
        named, plan = str(document["name"]), str(document["plan_sha256"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}: not a manifest of a sharded set ({type(error).__name__}: {error}); "
            "give the folder or URL that `shard` or `masks` wrote"
        ) from error
    for name, split in splits.items():
        if not SPLIT.fullmatch(name):
            raise ValueError(f"{where}: invalid split name {name!r}")
        if split.samples != sum(shard.samples for shard in split.shards):
            raise ValueError(
                f"{where}: the samples of split {name} differ from the sum over its shards"
            )
    return Manifest(str(url), named, kind, plan, splits, hashlib.sha256(data).hexdigest())


def _shard(where: str, kind: str, place: int, item: Mapping[str, Any]) -> Shard:
    name = str(item["name"])
    if kind == "external":
        number = place
    elif SHARD.fullmatch(name):
        number = int(name[6:12])
    else:
        raise ValueError(f"{where}: invalid shard name {name!r}: expected shard-000000.tar")
    return Shard(
        name, int(item["bytes"]), int(item["samples"]), item["sha256"], item["index_sha256"], number
    )


def open_manifest(url: str, key: str = "") -> Manifest:
    """Open the set at `url`. Raises ValueError when there is none, or its schema is newer.

    key: what gave the URL, as messages name it, such as `data.url=`.
    """
    url = str(url).rstrip("/").removesuffix("/" + FILE)
    try:
        data = store.read(store.join(url, FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{key}{store.display(url)} holds no {FILE}, so it is not a finished sharded set: give "
            "one, or run `shard` or `masks` (re-running the command finishes an interrupted set)"
        ) from error
    return decode(data, url)


def read_index(manifest: Manifest, split: str, shard: Shard) -> pa.Table:
    """Return the samples of one shard in tar order, columns as `COLUMNS[manifest.kind]`.

    Raises ValueError when the index is missing or differs from the manifest.
    """
    url = manifest.index_url(split, shard)
    try:
        data = store.read(url)
    except FileNotFoundError as error:
        raise ValueError(f"{store.display(url)}: no such index; shard the set again") from error
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise ValueError(
            f"{store.display(url)}: its sha256 differs from the manifest; shard the set again"
        )
    table = pq.read_table(io.BytesIO(data))
    if table.num_rows != shard.samples:
        raise ValueError(
            f"{store.display(url)}: {table.num_rows} rows, but {shard.samples} in the manifest; "
            "shard the set again"
        )
    return table
