"""Pack samples into one shard: the bytes of a tar and of its index.

Both are pure functions of the samples, so that every writer of a shard writes the same bytes: ustar
members with fixed owner, mode and (integer!) time, named by sample id instead of the names in the
source, which can repeat, contain dots, or lead out of folders.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shards.manifest import COLUMNS

META = b"lacuna"


class PackedSample(NamedTuple):
    src: str  # its path in the source
    data: bytes  # as stored
    ext: str  # jpg, png, webp
    columns: Mapping[str, Any]  # further columns of the index: width, height, mode, …


class Reject(NamedTuple):
    src: str
    reason: str  # one word, for counting
    detail: str


@dataclass(frozen=True, slots=True)
class Packed:
    tar: bytes
    index: bytes
    samples: int
    rejects: tuple[Reject, ...]


class IndexMeta(NamedTuple):
    """The plan and the tar that an index belongs to, and the rejects of its shard."""

    plan_sha256: str
    tar_sha256: str
    tar_bytes: int
    rejects: list[list[Any]]  # [sample_id, src, reason, detail]


def content_hash(data: bytes) -> int:
    """Return 64 bits of blake2b: equal for equal images."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def pack(
    kind: str, number: int, plan_sha256: str, samples: Iterable[tuple[int, PackedSample | Reject]]
) -> Packed:
    """Pack (id, sample or reject) pairs, in the given order."""
    from webdataset import TarWriter  # imported late: it imports torch, two seconds and 200 MB

    buffer = io.BytesIO()
    rows: list[dict[str, Any]] = []
    rejects: list[list[Any]] = []
    with TarWriter(buffer, user="", group="", mtime=0, encoder=False) as writer:
        for sample_id, sample in samples:
            if isinstance(sample, Reject):
                rejects.append([sample_id, *sample])
                continue
            key = f"{sample_id:09d}"
            writer.write({"__key__": key, sample.ext: sample.data})
            end = writer.tarstream.offset
            rows.append(
                {
                    "sample_id": sample_id,
                    "shard": number,
                    "key": key,
                    "src": sample.src,
                    "ext": sample.ext,
                    "offset": end - -(-len(sample.data) // 512) * 512,
                    "size": len(sample.data),
                    "crc32": zlib.crc32(sample.data),
                    "content_hash": content_hash(sample.data),
                    **sample.columns,
                }
            )
    tar = buffer.getvalue()
    meta = IndexMeta(plan_sha256, hashlib.sha256(tar).hexdigest(), len(tar), rejects)
    refused = tuple(Reject(*reject[1:]) for reject in rejects)
    return Packed(tar, index_bytes(kind, rows, meta), len(rows), refused)


def index_bytes(kind: str, rows: list[dict[str, Any]], meta: IndexMeta) -> bytes:
    """Return the Parquet index of `rows`, columns as `COLUMNS[kind]`, `meta` in its schema."""
    table = pa.Table.from_pylist(rows, schema=COLUMNS[kind])
    note = json.dumps(meta._asdict(), sort_keys=True, ensure_ascii=False).encode()
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({META: note}), sink, compression="zstd")
    return sink.getvalue()


def index_meta(data: bytes) -> IndexMeta:
    """Return the metadata of the index in `data`. Raises ValueError when it has none."""
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        return IndexMeta(**json.loads(metadata[META]))
    except (pa.ArrowException, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not the index of a shard ({type(error).__name__})") from error
