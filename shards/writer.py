"""Write a sharded set: plan, shards, finalize.

Any number of processes write without a coordinator and may be killed and resumed at any point; the
set is the same byte for byte. A shard is complete once its index is published, after its tar, and
is then never written again. `manifest.json` comes last; until then readers see no set.
"""

import hashlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards import store
from shards.manifest import Manifest, Shard, Split
from shards.pack import Packed, PackedSample, Reject, index_meta, pack
from shards.plan import Plan, Row, generated_plan, publish, rows_of
from shards.pool import map_unordered

Load = Callable[[Row], PackedSample | Reject]
REJECTS = pa.schema(
    [
        ("split", pa.string()),
        ("sample_id", pa.int64()),
        ("src", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Progress(NamedTuple):
    """The progress of writing; counts are of this process's share."""

    shards: int
    of_shards: int
    images: int
    of_images: int
    rejected: int
    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return (self.images + self.rejected) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.of_images - self.images - self.rejected) / max(self.rate, 1e-9)


class Finished(NamedTuple):
    manifest: Manifest
    rejects: Mapping[str, int]  # by reason
    duplicates: int  # samples with the same stored bytes as another one
    shared: Mapping[tuple[str, str], int]  # of these, samples of the first split in the second


def write(
    out: str,
    plan: Plan,
    load: Load,
    *,
    workers: int = 1,
    task: tuple[int, int] = (0, 1),
    max_reject_rate: float = 0.01,
) -> Iterator[Progress]:
    """Write share task[0] of task[1] of the plan's missing shards; yields after each shard.

    `load` turns a row into a sample or a reject; with `workers` > 1 it is pickled.
    Raises ValueError if `out` is not empty and not this set, or there are too many rejects.
    """
    publish(out, plan)
    absent = set(missing(out, plan))
    mine = [shard for i, shard in enumerate(plan.shards()) if i % task[1] == task[0]]
    todo = [(split, number, a, b) for split, number, a, b in mine if (split, number) in absent]
    jobs = (
        _Job(
            out,
            plan.kind,
            plan.sha256,
            split,
            number,
            list(rows_of(plan.rows.slice(a, b - a))),
            load,
        )
        for split, number, a, b in todo
    )
    total, begun = sum(b - a for _, _, a, b in todo), time.monotonic()
    images = written = 0
    rejects: list[Reject] = []
    for count, wrote in enumerate(map_unordered(_write_shard, jobs, workers), start=1):
        images, written = images + wrote.samples, written + wrote.bytes
        rejects += wrote.rejects
        if len(rejects) > max_reject_rate * plan.rows.num_rows:
            raise _too_many(out, rejects, plan.rows.num_rows, max_reject_rate)
        seconds = time.monotonic() - begun
        yield Progress(count, len(todo), images, total, len(rejects), written, seconds)


def missing(out: str, plan: Plan) -> list[tuple[str, int]]:
    """Return (split, shard) of the plan's shards that are not complete in `out`."""
    absent = []
    for split in dict.fromkeys(split for split, *_ in plan.shards()):
        tars = set(store.names(store.join(out, split)))
        indexes = set(store.names(store.join(out, split, "index")))
        for number in (n for s, n, *_ in plan.shards() if s == split):
            if f"{_stem(number)}.tar" not in tars or f"{_stem(number)}.parquet" not in indexes:
                absent.append((split, number))
    return absent


def _stem(number: int) -> str:
    return f"shard-{number:06d}"


# --- one shard ------------------------------------------------------------------------------------


class _Job(NamedTuple):
    out: str
    kind: str
    plan_sha256: str
    split: str
    number: int
    rows: list[Row]  # a list: pickling a slice would pickle the whole table
    load: Load


class _Wrote(NamedTuple):
    samples: int
    bytes: int
    rejects: tuple[Reject, ...]


def _write_shard(job: _Job) -> _Wrote:
    samples = ((row.sample_id, job.load(row)) for row in job.rows)
    packed = pack(job.kind, job.number, job.plan_sha256, samples)
    _publish(job.out, job.split, job.number, packed)
    return _Wrote(packed.samples, len(packed.tar), packed.rejects)


def _publish(out: str, split: str, number: int, packed: Packed) -> None:
    store.write(store.join(out, split, f"{_stem(number)}.tar"), packed.tar)
    store.write(store.join(out, split, "index", f"{_stem(number)}.parquet"), packed.index)


# --- the end --------------------------------------------------------------------------------------


def finalize(out: str, plan: Plan, *, max_reject_rate: float = 0.01) -> Finished:
    """Publish rejects.parquet and, last, the manifest; every process writes the same bytes.

    Raises ValueError, and writes no manifest, if shards are missing, a tar differs from its index,
    or more than `max_reject_rate` of the source was rejected (the message counts the reasons).
    """
    absent = missing(out, plan)
    if absent:
        raise ValueError(
            f"{store.display(out)}: {len(absent)} of {len(plan.shards())} shards are missing; "
            "run the same command again (all tasks of a job array)"
        )
    return finish(out, plan, [(s, n, None) for s, n, *_ in plan.shards()], max_reject_rate)


def finish(
    out: str,
    plan: Plan,
    written: Iterable[tuple[str, int, str | None]],
    max_reject_rate: float,
) -> Finished:
    """Publish rejects and manifest of shards: (split, number, URL of the tar if outside `out`)."""
    splits: dict[str, list[Shard]] = {}
    rejects: list[dict[str, Any]] = []
    hashes: dict[str, list[np.ndarray]] = {}
    for split, number, elsewhere in written:
        url = store.join(out, split, "index", f"{_stem(number)}.parquet")
        data = store.read(url)
        meta = index_meta(data)
        name = elsewhere or f"{_stem(number)}.tar"
        length = store.size(elsewhere or store.join(out, split, name))
        if meta.plan_sha256 != plan.sha256 or length != meta.tar_bytes:
            raise ValueError(
                f"{store.display(url)} does not match its tar; remove both and "
                "run the same command again"
            )
        column = pq.read_table(io.BytesIO(data), columns=["content_hash"])["content_hash"]
        hashes.setdefault(split, []).append(column.to_numpy())
        rejects += [dict(zip(REJECTS.names, (split, *item))) for item in meta.rejects]
        if len(column) or elsewhere:
            sha256 = hashlib.sha256(data).hexdigest()
            shard = Shard(name, length, len(column), meta.tar_sha256, sha256, number)
            splits.setdefault(split, []).append(shard)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rejects, REJECTS), sink, compression="zstd")
    store.write(store.join(out, "rejects.parquet"), sink.getvalue())

    of_split = {split: np.concatenate(parts) for split, parts in hashes.items()}
    stored = np.concatenate([*of_split.values(), np.empty(0, np.uint64)])
    if not len(stored) and not rejects:
        raise ValueError(
            f"{store.display(out)}: no image in any tar of the source; expected members named "
            "KEY.jpg, KEY.png, KEY.webp, ..."
        )
    reasons = Counter(str(item["reason"]) for item in rejects)
    if len(rejects) > max_reject_rate * (len(stored) + len(rejects)) or not len(stored):
        refused = [Reject(item["src"], item["reason"], item["detail"]) for item in rejects]
        raise _too_many(out, refused, len(stored) + len(rejects), max_reject_rate)
    counts = {split: sum(shard.samples for shard in splits[split]) for split in splits}
    listed = {s: Split(counts[s], tuple(shards)) for s, shards in splits.items() if counts[s]}
    encoded = manifests.encode(plan.name, plan.kind, plan.sha256, listed)
    store.write(store.join(out, manifests.FILE), encoded)
    duplicates = len(stored) - len(np.unique(stored))
    shared = {
        (split, earlier): int(np.isin(of_split[split], of_split[earlier]).sum())
        for earlier, split in itertools.combinations(of_split, 2)
    }
    return Finished(manifests.decode(encoded, out), dict(reasons), duplicates, shared)


class TooManyRejects(ValueError):
    """More of the source was rejected than `max_reject_rate` allows."""


def _too_many(out: str, rejects: list[Reject], total: int, rate: float) -> TooManyRejects:
    first = {reject.reason: reject for reject in reversed(rejects)}
    counted = "; ".join(
        f"{count} {reason}, such as {first[reason].src!r}: {first[reason].detail}"
        for reason, count in Counter(reject.reason for reject in rejects).most_common()
    )
    return TooManyRejects(
        f"{store.display(out)}: {len(rejects)} of {total} files rejected ({counted}), more than "
        f"max_reject_rate={rate:g}; fix the source or raise max_reject_rate"
    )


# --- generated sets -------------------------------------------------------------------------------


def write_set(
    out: str,
    name: str,
    kind: str,
    samples: Mapping[str, Iterable[PackedSample]],
    *,
    options: Mapping[str, Any],
    per_shard: int,
) -> Finished:
    """Write a whole set from generated samples, in order, `per_shard` per shard.

    `options` must determine every byte: a finished set with the same options is kept, and shards
    that an interrupted run published are not published again.
    """
    plan = generated_plan(name, kind, {**options, "per_shard": per_shard})
    publish(out, plan)
    written: list[tuple[str, int, str | None]] = []
    if store.exists(store.join(out, manifests.FILE)):
        splits = manifests.open_manifest(out).splits
        written = [(name, shard.number, None) for name, s in splits.items() for shard in s.shards]
        return finish(out, plan, written, max_reject_rate=0.0)
    first = 0
    for split, stream in samples.items():
        published = set(store.names(store.join(out, split, "index")))
        for number, chunk in enumerate(_chunks(stream, per_shard)):
            if f"{_stem(number)}.parquet" not in published:
                packed = pack(kind, number, plan.sha256, enumerate(chunk, start=first))
                _publish(out, split, number, packed)
            first += len(chunk)
            written.append((split, number, None))
    return finish(out, plan, written, max_reject_rate=0.0)


def _chunks(stream: Iterable[PackedSample], length: int) -> Iterator[list[PackedSample]]:
    iterator = iter(stream)
    while chunk := list(itertools.islice(iterator, length)):
        yield chunk
