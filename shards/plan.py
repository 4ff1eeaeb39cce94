"""What goes where: every sample of a source gets its split, its id and its shard before a byte is
copied. Each shard then depends on the plan alone, so that any process may write any shard at any
time, and a second writer writes the same bytes.

Samples are sorted by name and then permuted by hashed place, which destroys the order of classes
without relying on a random generator whose stream may change between versions.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import store
from shards.manifest import SPLIT

BLOCK = 512  # of a tar
SPLITS = ("train", "val", "test")  # come first and in this order; others follow by name
ROWS = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("src", pa.binary()),  # names are bytes on a disk, not always UTF-8
        ("size", pa.int64()),
        ("label", pa.int32()),  # -1: none
        ("archive", pa.string()),  # the tar, zip or folder it lies in, relative to the source
        ("offset", pa.int64()),
    ]
)


class Entry(NamedTuple):
    """One file of a source, as listed."""

    split: str
    src: bytes  # relative to the source
    size: int
    label: int = -1
    archive: str = ""
    offset: int = 0


class Row(NamedTuple):
    """One file of a plan, as given to the function that loads it."""

    sample_id: int
    src: bytes
    size: int
    label: int
    archive: str
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    kind: str
    options: Mapping[str, Any]  # all that changes the set's bytes, beside the source
    sha256: str
    rows: pa.Table  # ROWS, sorted by sample_id; empty for a set that was generated

    def shards(self) -> list[tuple[str, int, int, int]]:
        """(split, shard, first row, end row) in order."""
        if not self.rows.num_rows:
            return []
        split = self.rows["split"].combine_chunks().dictionary_encode()
        code = split.indices.to_numpy().astype(np.int64)
        number = self.rows["shard"].to_numpy()
        starts = np.flatnonzero(np.diff(code * 2**32 + number, prepend=-1))
        ends = np.append(starts[1:], len(number))
        named = split.dictionary.to_pylist()
        return [(named[code[a]], int(number[a]), int(a), int(b)) for a, b in zip(starts, ends)]


def make_plan(
    name: str,
    kind: str,
    entries: Iterable[Entry],
    *,
    seed: int,
    shard_bytes: int,
    options: Mapping[str, Any],
) -> Plan:
    """The plan for `entries`, in whatever order they come. O(entries) memory, about 100 B each.

    Raises ValueError when there are none, or a split has a name that is no folder's.
    """
    table = _table_of(entries)
    if not table.num_rows:
        raise ValueError(f"{name}: the source holds no image; give the folder that holds them")
    found = set(pc.unique(table["split"]).to_pylist())
    for split in found:
        if not SPLIT.fullmatch(split):
            raise ValueError(f"{name}: {split!r} cannot be a split's name")
    ordered = [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))
    parts = [table.filter(pc.equal(table["split"], split)) for split in ordered]
    del table  # each step below lets the one before it go: a plan of millions is copied once
    numbers = []
    for i, part in enumerate(parts):
        part = part.sort_by([("src", "ascending"), ("archive", "ascending")])
        part = part.take(pa.array(np.argsort(_hashed(part.num_rows, seed), kind="stable")))
        size = part["size"].to_numpy()
        ends = np.cumsum(BLOCK + -(-size // BLOCK) * BLOCK)  # a header, then the padded payload
        number = (ends - 1) // shard_bytes
        numbers.append(np.unique(number, return_inverse=True)[1])  # no number is left out
        parts[i] = part
    table = pa.concat_tables(parts)
    del parts, part
    rows = pa.table(
        {
            **{column: table[column] for column in table.column_names},
            "sample_id": np.arange(table.num_rows),
            "shard": np.concatenate(numbers).astype(np.int32),
        }
    )
    rows = rows.select(ROWS.names).cast(ROWS).combine_chunks()
    options = {**options, "seed": seed, "shard_bytes": shard_bytes}
    return Plan(name, kind, options, _digest(name, kind, options, rows), rows)


def generated_plan(name: str, kind: str, options: Mapping[str, Any]) -> Plan:
    """The plan of a set that is made rather than found: `options` determine every byte."""
    rows = ROWS.empty_table()
    return Plan(name, kind, dict(options), _digest(name, kind, options, rows), rows)


def rows_of(rows: pa.Table) -> Iterator[Row]:
    """The rows of one shard, as its loader gets them."""
    columns = [rows[name].to_pylist() for name in Row._fields]
    return (Row(*values) for values in zip(*columns))


def _table_of(entries: Iterable[Entry]) -> pa.Table:
    schema = pa.schema([ROWS.field(name) for name in Entry._fields])
    batches: list[pa.RecordBatch] = []
    pending: list[Entry] = []

    def flush() -> None:
        columns = list(zip(*pending)) or [()] * len(schema)
        batches.append(
            pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema)], schema=schema)
        )
        pending.clear()

    for entry in entries:
        pending.append(entry)
        if len(pending) == 65536:
            flush()
    flush()
    return pa.Table.from_batches(batches, schema)


def _hashed(count: int, seed: int) -> np.ndarray:
    """The first `count` outputs of splitmix64 from `seed`: uint64[count]."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(seed % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _digest(name: str, kind: str, options: Mapping[str, Any], rows: pa.Table) -> str:
    """sha256 of what the plan says, whatever version of Arrow holds it.

    Where a file lies is left out: a folder and the tar of it make the same set.
    """
    digest = hashlib.sha256(json.dumps([name, kind, dict(options)], sort_keys=True).encode())
    for column in rows.column_names[:-2]:  # without archive, offset
        for chunk in rows[column].chunks:
            if pa.types.is_integer(chunk.type):
                digest.update(chunk.to_numpy().tobytes())
            else:
                digest.update(pc.binary_length(chunk).to_numpy().astype("<i8").tobytes())
                digest.update(_payload(chunk))
    return digest.hexdigest()


def _payload(chunk: pa.Array) -> memoryview:
    """The bytes of all strings of an array, one after the other, as they lie in memory."""
    _, offsets, data = chunk.buffers()
    if offsets is None or data is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


# --- at the output --------------------------------------------------------------------------------


def publish(out: str, plan: Plan) -> None:
    """Claims `out` for `plan`: plan.parquet, then plan.json.

    Raises ValueError when `out` holds something else.
    """
    document = _encode(plan)
    saved = _read_document(out)
    if saved is None:
        _require_empty(out)
        if plan.rows.num_rows:
            sink = io.BytesIO()
            pq.write_table(plan.rows, sink, compression="zstd")
            store.write(store.join(out, "plan.parquet"), sink.getvalue())
        try:
            store.write(store.join(out, "plan.json"), document, exclusive=True)
        except FileExistsError:
            saved = _read_document(out)
    if saved is not None and saved["sha256"] != plan.sha256:
        raise ValueError(
            f"{store.display(out)} was begun {_difference(saved, plan)}; "
            "give another out=, or remove that one"
        )


def load(out: str, name: str, kind: str, options: Mapping[str, Any]) -> Plan | None:
    """The plan that `out` was begun with, None for a new one.

    Raises ValueError when it was begun with other options, naming them, or holds something else.
    """
    saved = _read_document(out)
    if saved is None:
        _require_empty(out)
        return None
    wanted = Plan(name, kind, options, "", ROWS.empty_table())
    if (saved["name"], saved["kind"], saved["options"]) != (name, kind, dict(options)):
        raise ValueError(
            f"{store.display(out)} was begun {_difference(saved, wanted)}; "
            "give another out=, or remove that one"
        )
    rows = pq.read_table(io.BytesIO(store.read(store.join(out, "plan.parquet"))), schema=ROWS)
    rows = rows.combine_chunks()
    if _digest(name, kind, options, rows) != saved["sha256"]:
        raise ValueError(
            f"{store.display(out)}: plan.parquet is not the one plan.json names; "
            "remove the folder and shard again"
        )
    return Plan(name, kind, options, saved["sha256"], rows)


def _require_empty(out: str) -> None:
    other = [name for name in store.names(out) if name != "plan.parquet"]
    if other:
        raise ValueError(
            f"{store.display(out)} holds something else ({other[0]!r}); "
            "give out= a new or empty folder"
        )


def _encode(plan: Plan) -> bytes:
    document = {"name": plan.name, "kind": plan.kind, "options": dict(plan.options)}
    return (
        json.dumps({**document, "sha256": plan.sha256}, sort_keys=True, indent=1) + "\n"
    ).encode()


def _read_document(out: str) -> dict[str, Any] | None:
    try:
        found = store.read(store.join(out, "plan.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(found)
        saved = {name: document[name] for name in ("name", "kind", "options", "sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{store.display(out)}: plan.json is not ours; give another out="
        ) from error
    return saved


def _difference(saved: Mapping[str, Any], plan: Plan) -> str:
    pairs: dict[str, tuple[Any, Any]] = {
        "name": (saved["name"], plan.name),
        "kind": (saved["kind"], plan.kind),
    }
    for key in sorted({*saved["options"], *plan.options}):
        pairs[key] = (saved["options"].get(key), plan.options.get(key))
    for key, (before, now) in pairs.items():
        if before != now:
            return f"with {key}={_short(before)}, and this command says {key}={_short(now)}"
    return "from another source"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
