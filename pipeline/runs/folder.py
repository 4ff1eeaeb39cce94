"""`run.json`: the few facts about a run that other processes look up.

The checkpoint, the launcher and the tracker each own some keys; `update_run_json` merges theirs
into what is there, atomically: a reader sees one whole object, no writer undoes another's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.environment import cache_dir
from pipeline.common.errors import ConfigError
from pipeline.common.locks import Held, hold, is_leased, leased, sign
from shards import store

SUBMITTING = ".submit.lock"  # of a job that is being submitted


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


def folders(root: str) -> list[Path]:
    """Run folders at most three levels below `root`: those with a `run.json`."""
    if not store.is_local(root):
        raise ValueError(f"{store.display(root)} is no local folder: give root= the folder of runs")
    top = Path(root)
    if not top.is_dir():
        raise ValueError(f"{root} is no folder: give root= the folder that holds the runs")
    found = [path.parent for depth in range(4) for path in top.glob("*/" * depth + "run.json")]
    return sorted(found)


def _merge(url: str, run: str, keys: dict[str, Any]) -> dict[str, Any]:
    merged = {k: v for k, v in {**read_run_json(run), **keys}.items() if v is not None}
    store.write(url, (json.dumps(merged, indent=1, sort_keys=True) + "\n").encode())
    return merged


@dataclass(frozen=True)
class RunFolder:
    """`url`: what the user named; `local`: where this process reads and writes."""

    url: str
    local: Path
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def publish(self) -> None:
        """Copy to the URL what changed since, but for checkpoints and run.json, written there."""
        if store.is_local(self.url):
            return
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            hidden = f"/{name}".count("/.")  # the lock, and what is being written
            if hidden or name == "run.json" or not path.is_file():
                continue
            found = path.stat()
            state = found.st_mtime_ns, found.st_size
            if self._sent.get(name) != state:
                store.upload(store.join(self.url, name), path)
                self._sent[name] = state


def folder_at(url: str) -> RunFolder:
    """The folder of a run by its path or URL."""
    if store.is_local(url):
        return RunFolder(url, store.local(url).absolute())
    cache = cache_dir() / "runs"
    return RunFolder(url, cache / hashlib.sha256(url.encode()).hexdigest()[:16])


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Hold the run for writing; a second live writer is refused, naming the first.

    A folder that holds nothing else in the end is removed.
    """
    path = run.local / ".lock"
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(hold(path))
        except Held as error:
            raise ConfigError(
                f"{run.url} is being trained by {error.owner}: wait, stop that one, or name "
                "another run="
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run={run.url} cannot be written ({error.strerror}): name another folder"
            ) from None
        if not store.is_local(run.url):
            stack.enter_context(leased(run.url))
        sign(handle)
        try:
            yield
        finally:
            if set(os.listdir(run.local)) <= {path.name, SUBMITTING}:
                path.unlink()
                with suppress(OSError):
                    run.local.rmdir()


def is_held(url: str) -> bool:
    """Whether somebody alive holds the run; of one in a bucket it may take a minute to tell."""
    if not store.is_local(url):
        return is_leased(url)
    try:
        with open(store.local(url) / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never held, or moved
        return False
    return False
