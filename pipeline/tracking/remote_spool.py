"""The spool of a run that lives at a URL: in a cache folder here, copied to the run and back.

Training may go on on another node. What the last checkpoint published is enough there: later
points belong to steps that are run again. Who drains a spool owns its cursor and removes what was
sent: the trainer, or where it only spools (`drains` in its state is false) whoever runs `sync`.
"""

import contextlib
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

from pipeline.common.environment import cache_dir
from pipeline.tracking.spool import CURSOR, drop_sent, write_json
from shards import objects, store

STATE = "state.json"
DRAINERS = (CURSOR, "rejected.jsonl")  # written by whoever drains


def spool_folder(run: str) -> Path:
    """Where a run's events lie on this machine."""
    if store.is_local(run):
        return store.local(run) / "spool"
    cache = cache_dir()
    return cache / "lacuna" / "spool" / hashlib.sha256(run.encode()).hexdigest()[:16]


def read_state(folder: str | Path) -> dict[str, Any]:
    """`state.json` of a spool's folder or URL; {} where there is none."""
    try:
        return dict(json.loads(store.read(store.join(folder, STATE))))
    except objects.StoreError:  # a bucket that does not answer has not told that there is none
        raise
    except (FileNotFoundError, ValueError):
        return {}


def waits(run: str) -> bool:
    """Whether the copy of a remote run's spool holds anything behind its cursor."""
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
    """Makes `folder` what a remote run's spool is, unless this machine wrote that spool."""
    url = store.join(run, "spool")
    there, here = read_state(url), read_state(folder)
    ours = here.get("at") == place(folder) and here["uid"] == there.get("uid")
    if not there or ours and here["attempt"] >= there["attempt"]:
        return
    remote = _tree(url)
    anew = (here.get("uid"), here.get("attempt")) != (there["uid"], there["attempt"])
    for name in tree(folder) - (set() if anew else set(remote)):
        (folder / name).unlink()
    for name in sorted(remote, key=lambda name: name == STATE):  # half a copy is no copy
        path = folder / name
        kept = path.exists() and name.startswith(("files/", "events-"))
        if kept and (name[0] == "f" or path.stat().st_size == store.size(store.join(url, name))):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(store.join(url, name)))


def place(folder: Path) -> str:
    """Where a spool is written, for its state: a copy of it lies elsewhere."""
    return f"{socket.gethostname()}:{folder.absolute()}"


def push_spool(run: str, folder: Path, drains: bool = True) -> None:
    """Brings `<run>/spool` up to the trainer's spool: segments, files, state and, if it drains
    itself, the cursor. What another drainer has sent is then dropped here."""
    url = store.join(run, "spool")
    if not drains:
        with contextlib.suppress(FileNotFoundError):
            write_json(folder / CURSOR, json.loads(store.read(store.join(url, CURSOR))))
        drop_sent(folder)
    local = {name for name in tree(folder) if drains or name not in DRAINERS}
    there = set(_tree(url))
    # The cursor first, lest it lie behind the copied segments; the state, which says all, last.
    for name in sorted(local, key=lambda name: (name == STATE, name not in DRAINERS)):
        target, path = store.join(url, name), folder / name
        with contextlib.suppress(FileNotFoundError):  # sent and removed meanwhile
            same = name in there and name not in (STATE, *DRAINERS)
            if not same or store.size(target) != path.stat().st_size:
                store.upload(target, path)
    for name in there - local if drains else ():
        store.remove(store.join(url, name))


def push_sent(run: str, folder: Path, before: set[str]) -> None:
    """After sending from a copy: the cursor, and the removal of those `before` that are gone."""
    url = store.join(run, "spool")
    for name in DRAINERS:
        if (folder / name).exists():
            store.upload(store.join(url, name), folder / name)
    for name in before - tree(folder):
        store.remove(store.join(url, name))


def tree(folder: Path) -> set[str]:
    """Files of a spool on this machine, relative to its folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in found}
    return {name for name in names if name != "drain.lock" and not name.startswith(".")}


def _tree(url: str) -> list[str]:
    """Files below a spool's URL, relative: those at its top and those in `files/`."""
    found = [name for name in store.names(url) if name != "files" and not name.startswith(".")]
    for name in store.names(store.join(url, "files")):
        if "." in name:  # a picture; asked for what is below it, a bucket would name it again
            found.append(f"files/{name}")
        else:
            found += [f"files/{name}/{n}" for n in store.names(store.join(url, "files", name))]
    return found
