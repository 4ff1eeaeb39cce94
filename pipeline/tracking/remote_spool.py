"""Keep the spool of a run at a URL in a local cache folder, and copy it to the run and back.

Training may resume on another node. What was copied with the last checkpoint is enough there:
later points belong to steps that are repeated. The process that drains the spool owns its cursor
and removes what was sent: the trainer or, where `drains` in the state is false, `sync`.
"""

import contextlib
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

from pipeline.common.environment import cache_dir
from pipeline.tracking.spool import CURSOR, drop_sent, write_json
from shards import files, objects, store

STATE = "state.json"
DRAINERS = (CURSOR, "rejected.jsonl")  # written by the process that drains


def spool_folder(run: str) -> Path:
    """Return the folder of a run's spool on this machine."""
    if store.is_local(run):
        return store.local(run) / "spool"
    return cache_dir() / "spool" / hashlib.sha256(run.encode()).hexdigest()[:16]


def read_state(folder: str | Path) -> dict[str, Any]:
    """Read `state.json` of a spool's folder or URL; {} if there is none."""
    try:
        return dict(json.loads(store.read(store.join(folder, STATE))))
    except objects.StoreError:  # no answer of a bucket does not mean that there is none
        raise
    except (FileNotFoundError, ValueError):
        return {}


def has_unsent(run: str) -> bool:
    """Return whether the remote copy of a run's spool holds events after its cursor."""
    url = store.join(run, "spool")
    cursor = {"segment": 1, "offset": 0}
    with contextlib.suppress(FileNotFoundError):
        cursor = json.loads(store.read(store.join(url, CURSOR)))
    sent = f"events-{cursor['segment']:06d}.jsonl"
    segments = [name for name in store.names(url) if name.startswith("events-") and name >= sent]
    return any(name > sent or _size(store.join(url, name)) > cursor["offset"] for name in segments)


def _size(url: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return store.size(url)
    return 0


def fetch_spool(run: str, folder: Path) -> None:
    """Copy the spool of a remote run into `folder`, unless this machine wrote that spool."""
    url = store.join(run, "spool")
    remote_state, state = read_state(url), read_state(folder)
    ours = state.get("at") == place(folder) and state["uid"] == remote_state.get("uid")
    if not remote_state or ours and state["attempt"] >= remote_state["attempt"]:
        return
    remote = _tree(url)
    same = all(state.get(key) == remote_state[key] for key in ("uid", "attempt"))
    for name in tree(folder) - (set(remote) if same else set()):
        files.remove(folder / name)
    # The state last: a copy without it does not count.
    for name in sorted(remote, key=lambda name: name == STATE):
        path = folder / name
        kept = path.exists() and name.startswith(("files/", "events-"))
        if kept and (name[0] == "f" or path.stat().st_size == store.size(store.join(url, name))):
            continue
        store.write(str(path), store.read(store.join(url, name)))


def place(folder: Path) -> str:
    """Return host and folder of a spool, which tell it from its copies."""
    return f"{socket.gethostname()}:{folder.absolute()}"


def push_spool(run: str, folder: Path, drains: bool = True) -> None:
    """Copy the trainer's spool to `<run>/spool`: segments, files, state and its cursor.

    Without `drains` another process owns the cursor: it is read, and events before it are removed.
    """
    url = store.join(run, "spool")
    if not drains:
        with contextlib.suppress(FileNotFoundError):
            write_json(folder / CURSOR, json.loads(store.read(store.join(url, CURSOR))))
        drop_sent(folder)
    local = {name for name in tree(folder) if drains or name not in DRAINERS}
    remote = set(_tree(url))
    # The cursor first, so that it is never behind the segments; the state last, to complete a copy.
    for name in sorted(local, key=lambda name: (name == STATE, name not in DRAINERS)):
        target, path = store.join(url, name), folder / name
        with contextlib.suppress(FileNotFoundError):  # removed in the meantime because it was sent
            same = name in remote and name not in (STATE, *DRAINERS)
            if not same or store.size(target) != path.stat().st_size:
                store.upload(target, path)
    for name in remote - local if drains else ():
        store.remove(store.join(url, name))


def push_sent(run: str, folder: Path, before: set[str]) -> None:
    """Upload the cursor after sending from a copy, and remove the files that were sent."""
    url = store.join(run, "spool")
    for name in DRAINERS:
        if (folder / name).exists():
            store.upload(store.join(url, name), folder / name)
    for name in before - tree(folder):
        store.remove(store.join(url, name))


def tree(folder: Path) -> set[str]:
    """Return the files of a local spool, relative to its folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in paths}
    return {name for name in names if name != "drain.lock" and not name.startswith(".")}


def _tree(url: str) -> list[str]:
    """Return the files of a remote spool, relative to its URL."""
    names = [name for name in store.names(url) if name != "files" and not name.startswith(".")]
    for name in store.names(store.join(url, "files")):
        if "." in name:  # an image; listing below it, a bucket would return it again
            names.append(f"files/{name}")
        else:
            names += [f"files/{name}/{n}" for n in store.names(store.join(url, "files", name))]
    return names
