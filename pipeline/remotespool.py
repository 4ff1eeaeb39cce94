"""The spool of a run that lives at a URL: in a cache folder here, copied to the run and back.

Training may go on on another node. What the last checkpoint published is enough there: later
points belong to steps that are run again.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from shards import store

STATE = "state.json"


def spool_folder(run: str) -> Path:
    """Where a run's events lie on this machine."""
    if store.is_local(run):
        return store.local(run) / "spool"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lacuna" / "spool" / hashlib.sha256(run.encode()).hexdigest()[:16]


def fetch_spool(run: str, folder: Path) -> None:
    """Brings a remote run's spool here, unless what lies here is at least as new."""
    url = store.join(run, "spool")
    names = set(store.names(url))
    if STATE not in names:
        return
    there = json.loads(store.read(store.join(url, STATE)))
    try:
        here = json.loads((folder / STATE).read_bytes())
        if here["uid"] == there["uid"] and here["attempt"] >= there["attempt"]:
            return
    except (FileNotFoundError, ValueError):
        pass
    for path in sorted(folder.rglob("*"), reverse=True):  # an older attempt's, sent or superseded
        path.rmdir() if path.is_dir() else path.unlink()
    _copy_down(url, folder)


def push_spool(run: str, folder: Path) -> None:
    """Makes `<run>/spool` what the local spool is: finished segments, files, cursor, state."""
    url = store.join(run, "spool")
    local = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "drain.lock" and not path.name.startswith(".")
    }
    there = set(_tree(url))
    for name in sorted(local, key=lambda name: name == STATE):  # what readers look at first, last
        target = store.join(url, name)
        with contextlib.suppress(FileNotFoundError):  # sent and removed meanwhile
            rewritten = name in (STATE, "cursor.json", "rejected.jsonl")
            if rewritten or name not in there or store.size(target) != local[name].stat().st_size:
                store.upload(target, local[name])
    for name in there - set(local):
        store.remove(store.join(url, name))


def _tree(url: str) -> list[str]:
    """Files below a spool's URL, relative: those at its top and those in `files/`."""
    top = [name for name in store.names(url) if name != "files"]
    found = list(top)
    for name in store.names(store.join(url, "files")):
        inner = store.names(store.join(url, "files", name))
        found += [f"files/{name}/{leaf}" for leaf in inner] or [f"files/{name}"]
    return found


def _copy_down(url: str, folder: Path) -> None:
    for name in _tree(url):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(store.join(url, name)))
