"""Parts of one long result as files: ranks write theirs, one joins them, a later run goes on."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.evaluation import results
from shards import store

PATIENCE = 600.0  # seconds without a new part before the others are given up


def folder(url: str, same: Mapping[str, Any]) -> str:
    """A folder beside `url` that only work with the same description finds again."""
    word = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    return f"{url}.parts-{word}"


def path(parts: str, number: int) -> str:
    return store.join(parts, f"part-{number:06d}.parquet")


def collect(parts: str, count: int, patience: float = PATIENCE) -> list[pa.Table]:
    """All parts in order, waiting for those of other ranks.

    Raises TimeoutError when none has come for `patience` seconds.
    """
    wanted = [path(parts, number).rsplit("/", 1)[-1] for number in range(count)]
    last, seen = time.monotonic(), -1
    while True:
        there = set(store.names(parts))
        missing = [name for name in wanted if name not in there]
        if not missing:
            return [results.load(store.join(parts, name))[0] for name in wanted]
        if len(there) != seen:
            last, seen = time.monotonic(), len(there)
        if time.monotonic() - last > patience:
            raise TimeoutError(
                f"{len(missing)} of {count} parts of other ranks have not come to "
                f"{store.display(parts)} for {patience:.0f} s, first {missing[0]}: is it a "
                "folder that all machines see? The same command goes on from what is there"
            )
        time.sleep(min(0.5, patience))


def progress(name: str, total: int, shown: bool = True) -> Callable[[int], None]:
    """`tell(done)`: live on a terminal, one plain line every 30 s else; to stderr."""
    began = told = time.monotonic()
    live = sys.stderr.isatty()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if not shown or not (live or now - told >= 30):
            return
        told = now
        line = f"{name}: {done}/{total} pairs, {done / max(now - began, 1e-9):.1f}/s"
        end = "\n" if not live or done >= total else ""
        print(f"\r{line}" if live else line, end=end, file=sys.stderr, flush=True)

    return tell
