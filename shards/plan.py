"""The plan of a sharded set: the split, id and shard of every sample, made before any is copied.

Each shard then depends only on the plan, so that any process may write any shard at any time, and a
second writer writes the same bytes. Samples are sorted by name and then permuted by
`order.shuffled`, which mixes classes and does not depend on the version of NumPy.
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
from shards.order import shuffled

BLOCK = 512  # of a tar
SPLITS = ("train", "val", "test")  # the first ones, in this order; others follow by name
ROWS = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("src", pa.binary()),  # names are bytes on a disk, not always UTF-8
        ("size", pa.int64()),
        ("label", pa.int32()),  # -1: none
        ("archive", pa.string()),  # its tar, zip or folder, relative to the source
        ("offset", pa.int64()),
    ]
)


class Entry(NamedTuple):
    """One listed file of a source."""

    split: str
    src: bytes  # relative to the source
    size: int
    label: int = -1
    archive: str = ""
    offset: int = 0


class Row(NamedTuple):
    """One file of a plan, the argument of the function that loads it."""

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
    options: Mapping[str, Any]  # all options that change the bytes of the set
    sha256: str
    rows: pa.Table  # ROWS, sorted by sample_id; empty for a generated set

    def shards(self) -> list[tuple[str, int, int, int]]:
        """Return (split, shard, first row, end row) in order."""
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
    """Make the plan for `entries`, given in any order; takes about 100 B of memory per entry.

    Raises ValueError when there are none, or for an invalid name of a split.
    """
    table = _table_of(entries)
    if not table.num_rows:
        raise ValueError(f"{name}: no images at the source; give the folder that holds them")
    splits = set(pc.unique(table["split"]).to_pylist())
    for split in splits:
        if not SPLIT.fullmatch(split):
            raise ValueError(f"{name}: invalid split name {split!r}: use letters, digits, - and _")
    ordered = [s for s in SPLITS if s in splits] + sorted(splits - set(SPLITS))
    parts = [table.filter(pc.equal(table["split"], split)) for split in ordered]
    del table  # each step below frees the table before it: millions of rows are copied once
    numbers = []
    for i, part in enumerate(parts):
        part = part.sort_by([("src", "ascending"), ("archive", "ascending")])
        part = part.take(pa.array(shuffled(seed % 2**64, part.num_rows)))
        size = part["size"].to_numpy()
        ends = np.cumsum(BLOCK + -(-size // BLOCK) * BLOCK)  # a header, then the padded payload
        number = (ends - 1) // shard_bytes
        numbers.append(np.unique(number, return_inverse=True)[1])  # consecutive numbers
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
    """Return the plan of a generated set: `options` determine every byte of it."""
    rows = ROWS.empty_table()
    return Plan(name, kind, dict(options), _digest(name, kind, options, rows), rows)


def rows_of(rows: pa.Table) -> Iterator[Row]:
    """Yield the rows of a table, as the loader takes them."""
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


def _digest(name: str, kind: str, options: Mapping[str, Any], rows: pa.Table) -> str:
    """Return the sha256 of the content of the plan, independent of the version of Arrow.

    Leaves out the archives and offsets: a folder and a tar of it make the same set.
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
    """Return the concatenated bytes of all strings of an array, without a copy."""
    _, offsets, data = chunk.buffers()
    if offsets is None or data is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


# --- at the output --------------------------------------------------------------------------------


def publish(out: str, plan: Plan) -> None:
    """Claim `out` for `plan`: write plan.parquet, then plan.json.

    Raises ValueError when `out` is not empty and not this set.
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
        raise _other_set(out, saved, plan)


def load(out: str, name: str, kind: str, options: Mapping[str, Any]) -> Plan | None:
    """Return the plan that `out` was started with, None for a new `out`.

    Raises ValueError naming the options that differ, or when `out` is not empty and not such a set.
    """
    saved = _read_document(out)
    if saved is None:
        _require_empty(out)
        return None
    wanted = Plan(name, kind, options, "", ROWS.empty_table())
    if (saved["name"], saved["kind"], saved["options"]) != (name, kind, dict(options)):
        raise _other_set(out, saved, wanted)
    rows = pq.read_table(io.BytesIO(store.read(store.join(out, "plan.parquet"))), schema=ROWS)
    rows = rows.combine_chunks()
    if _digest(name, kind, options, rows) != saved["sha256"]:
        raise ValueError(
            f"{store.display(out)}: plan.parquet does not match plan.json; "
            "remove the folder and shard again"
        )
    return Plan(name, kind, options, saved["sha256"], rows)


def _require_empty(out: str) -> None:
    other = [name for name in store.names(out) if name != "plan.parquet"]
    if other:
        raise ValueError(
            f"{store.display(out)} is not empty and not this set (it has {other[0]!r}); "
            "give out= a new or empty folder"
        )


def _encode(plan: Plan) -> bytes:
    document = {"name": plan.name, "kind": plan.kind, "options": dict(plan.options)}
    return (
        json.dumps({**document, "sha256": plan.sha256}, sort_keys=True, indent=1) + "\n"
    ).encode()


def _read_document(out: str) -> dict[str, Any] | None:
    try:
        data = store.read(store.join(out, "plan.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(data)
        saved = {name: document[name] for name in ("name", "kind", "options", "sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{store.display(out)}: plan.json is not the plan of a sharded set; give another out="
        ) from error
    return saved


def _other_set(out: str, saved: Mapping[str, Any], plan: Plan) -> ValueError:
    """Return the error for a set that was started with another plan."""
    pairs: dict[str, tuple[Any, Any]] = {
        "name": (saved["name"], plan.name),
        "kind": (saved["kind"], plan.kind),
    }
    for key in sorted({*saved["options"], *plan.options}):
        pairs[key] = (saved["options"].get(key), plan.options.get(key))
    changes = (
        f"with {key}={_short(before)}, now {key}={_short(now)}"
        for key, (before, now) in pairs.items()
        if before != now
    )
    return ValueError(
        f"{store.display(out)} was started {next(changes, 'from another source')}; "
        "give another out=, or remove the old one"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
