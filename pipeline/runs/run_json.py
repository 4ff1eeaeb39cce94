"""`run.json`: the few facts about a run that other processes look up.

The checkpoint, the launcher and the tracker each own some keys; `update_run_json` merges theirs
into what is there, atomically: a reader sees one whole object, no writer undoes another's.
"""

from __future__ import annotations

import fcntl
import json
import threading
from typing import Any

from shards import store

NAME = "run.json"
_writers = threading.Lock()


def read_run_json(run: str) -> dict[str, Any]:
    """`run.json` of a run folder or URL; `{}` where there is none yet."""
    url = store.join(str(run), NAME)
    try:
        return json.loads(store.read(url))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(
            f"{store.display(url)} is not JSON: restore it, or remove it and start again"
        ) from None


def update_run_json(run: str, **keys: Any) -> dict[str, Any]:
    """Merges `keys` into `run.json`; a value of None removes its key. Returns the merged object.

    Safe between the threads of one process, and between processes on one disk. An object store has
    no lock: there the holder of the run's lock is the only writer.
    """
    url = store.join(str(run), NAME)
    with _writers:
        if not store.is_local(url):
            return _merge(url, run, keys)
        path = store.local(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(".run.json.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _merge(url, run, keys)


def _merge(url: str, run: str, keys: dict[str, Any]) -> dict[str, Any]:
    merged = {k: v for k, v in {**read_run_json(run), **keys}.items() if v is not None}
    store.write(url, (json.dumps(merged, indent=1, sort_keys=True) + "\n").encode())
    return merged
