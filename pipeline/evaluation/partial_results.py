"""Partial results as files: each rank writes its own, rank 0 joins them, a rerun reuses them."""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.evaluation import results
from shards import store

PATIENCE = 600.0  # seconds without a new file before rank 0 stops waiting for the other ranks


def folder(table: str, facts: Mapping[str, Any]) -> str:
    """Return the folder next to `table` that only an evaluation with the same facts reuses."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{table}.parts-{digest}"


def part_url(parts: str, number: int) -> str:
    return store.join(parts, f"part-{number:06d}.parquet")


def collect(parts: str, count: int, patience: float = PATIENCE) -> list[pa.Table]:
    """Return all parts in order, waiting for those of other ranks.

    Raises TimeoutError when no new part has appeared for `patience` seconds.
    """
    wanted = [store.name(part_url(parts, number)) for number in range(count)]
    last, seen = time.monotonic(), -1
    while True:
        written = set(store.names(parts))
        missing = [name for name in wanted if name not in written]
        if not missing:
            return [results.load(store.join(parts, name))[0] for name in wanted]
        if len(written) != seen:
            last, seen = time.monotonic(), len(written)
        if time.monotonic() - last > patience:
            raise TimeoutError(
                f"{len(missing)} of {count} parts of other ranks are missing in "
                f"{store.display(parts)}, first {missing[0]}; none was added for {patience:.0f} s: "
                "check that all machines share this folder; the same command reuses the parts"
            )
        time.sleep(min(0.5, patience))
