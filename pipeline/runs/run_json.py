"""`run.json`: the few facts about a run that other processes look up.

The checkpoint, the launcher and the tracker each own some keys. Every write merges its keys into
the current object atomically: a reader sees one whole object, and no writer undoes another's keys.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from shards import store
from shards.file_lock import locked

NAME = "run.json"
Facts = dict[str, Any]
_writers = threading.Lock()


def place_of(run: str) -> str:
    """Return a run's absolute path, or its URL without a slash at its end."""
    return os.path.abspath(store.local(run)) if store.is_local(run) else run.rstrip("/")


def read_run_json(run: str) -> Facts:
    """Read `run.json` of a run folder or URL; `{}` where it does not exist yet."""
    url = store.join(str(run), NAME)
    try:
        return dict(json.loads(store.read(url)))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, RecursionError):
        raise ValueError(
            f"{store.display(url)} is not JSON: restore it, or remove it and start again"
        ) from None


def update_run_json(run: str, **keys: Any) -> Facts:
    """Merge `keys` into `run.json`; None removes a key. Returns the merged object."""
    return change_run_json(run, lambda known: keys)


def change_run_json(run: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Merge the keys that `change` derives from the current object; None removes a key.

    Safe between threads of one process, and between processes on one disk. An object store has no
    lock: there the holder of the run's lock is the only writer.
    """
    url = store.join(str(run), NAME)
    lock = store.local(url).with_name(".run.json.lock") if store.is_local(url) else None
    with _writers, locked(lock) if lock else nullcontext():
        known = read_run_json(run)
        merged = {k: v for k, v in {**known, **change(known)}.items() if v is not None}
        store.write(url, (json.dumps(merged, indent=1, sort_keys=True) + "\n").encode())
        return merged
