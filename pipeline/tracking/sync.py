"""`sync`: sends the tracking events that a run could not send, or was told not to.

With `watch=true` it goes on, for runs with `tracking.drain=false` on nodes that have no route to
the server: start it where there is one, a login node, on the folder that holds the runs.
"""

import signal
import threading
from pathlib import Path
from typing import Any

from pipeline.common.locks import Taken, leased
from pipeline.config.schema import SyncConfig
from pipeline.tracking import client, errors
from pipeline.tracking.remote_spool import (
    fetch_spool,
    push_sent,
    read_state,
    spool_folder,
    tree,
    waits,
)
from pipeline.tracking.sender import Sender
from pipeline.tracking.spool import Unsent
from shards import store

DEPTH = 3
EVALUATION = "evaluation"  # a finished run's later findings have a spool of their own there
PAUSE = {True: 2.0, False: 15.0}  # seconds between rounds of watch=true, on a disk or in a bucket


def main(config: SyncConfig) -> dict[str, Any]:
    """Sends what waits below `dir`: a run's folder or URL, or a folder of runs.

    Returns sent, left, rejected and the same for each run. Raises ServerError if something is left
    that could not be sent, ValueError if there is no run.
    """
    senders: dict[str, Sender] = {}
    if not config.watch:
        troubles = _round(_senders(config.dir, senders))
        if not senders:
            raise ValueError(f"{store.display(config.dir)} holds no run: name a run's folder")
        result = _told(list(senders.values()))
        if troubles:
            raise errors.ServerError(f"{result['left']} events wait: {'; '.join(troubles)}")
        return result
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(PAUSE[store.is_local(config.dir)] if senders else 0.5):
        _round(_senders(config.dir, senders))
    return _told(list(senders.values()))


def dry_run(config: SyncConfig) -> str:
    found = _senders(config.dir, {})
    if not found:
        raise ValueError(f"{store.display(config.dir)} holds no run: name a run's folder")
    for sender in found:
        if not store.is_local(sender.run):
            fetch_spool(sender.run, sender.folder)
    return "\n".join(
        f"would send {Unsent(s.folder).count()} events of {store.display(s.run)} to "
        f"{errors.display_uri(s.uri)}"
        for s in found
    )


def _senders(where: str, known: dict[str, Sender]) -> list[Sender]:
    """A Sender for each spool at or below `where`; those of an earlier round are kept."""
    for run, folder in _local(where) if store.is_local(where) else _remote(where):
        if str(folder) not in known:
            known[str(folder)] = Sender(run, client.uri_for(run), folder)
    return list(known.values())


def _local(where: str) -> list[tuple[str, Path]]:
    top = store.local(where)
    spools = [top / "spool", top / EVALUATION / "spool"]
    spools += [p for depth in range(1, DEPTH + 1) for p in top.glob("*/" * depth + "spool")]
    return [(str(_run_of(p)), p) for p in dict.fromkeys(spools) if p.is_dir()]


def _run_of(spool: Path) -> Path:
    return spool.parent.parent if spool.parent.name == EVALUATION else spool.parent


def _remote(where: str) -> list[tuple[str, Path]]:
    """Runs in a bucket with a spool; an evaluation's waits on the machine that made it."""
    there = store.names(where)
    runs = [where] if "spool" in there else [store.join(where, name) for name in there]
    found = [(run, spool_folder(run)) for run in runs if "spool" in store.names(run)]
    scored = [(run, spool_folder(store.join(run, EVALUATION))) for run in runs]
    return found + [(run, folder) for run, folder in scored if folder.is_dir()]


def _round(senders: list[Sender]) -> list[str]:
    """Sends once what waits in each; what hindered it, in lines without repetition."""
    troubles = []
    for sender in senders:
        try:
            if not _send(sender):
                sender.tell("another process is sending this run's events")
                continue
            sender.tell(None)
        except Taken as error:
            sender.tell(f"{error.owner} holds the run and sends its events")
        except Exception as error:
            line = errors.explain(error, sender.uri) or f"{type(error).__name__}: {error}"
            sender.tell(line)
            troubles.append(line)
    return list(dict.fromkeys(troubles))


def _send(sender: Sender) -> bool:
    """Sends once what waits; False if another process of this machine has the right to."""
    if store.is_local(sender.run) or sender.folder != spool_folder(sender.run):
        return not Unsent(sender.folder).count() or sender.once()
    spool = store.join(sender.run, "spool")
    if not (waits(sender.run) or Unsent(sender.folder).count()):
        return True
    # A trainer that sends holds its run; of several `sync`s beside one that only spools, one sends.
    with leased(sender.run if read_state(spool).get("drains", True) else spool, "synced"):
        fetch_spool(sender.run, sender.folder)
        if not sender.folder.is_dir():
            return True  # half a copy of a node that died: nothing is there yet
        before = tree(sender.folder)
        try:
            return sender.once()
        finally:
            push_sent(sender.run, sender.folder, before)


def _told(senders: list[Sender]) -> dict[str, Any]:
    runs = [
        {
            "run": store.display(sender.run),
            "sent": sender.sent,
            "left": Unsent(sender.folder).count(),
            "rejected": sender.rejected,
        }
        for sender in senders
    ]
    return {
        **{key: sum(run[key] for run in runs) for key in ("sent", "left", "rejected")},
        "runs": runs,
    }


def show(result: dict[str, Any]) -> str:
    lines = [f"{run['run']}: {run['sent']} sent, {run['left']} wait" for run in result["runs"]]
    if result["rejected"]:
        lines.append(f"{result['rejected']} were refused: see rejected.jsonl in the run's spool")
    return "\n".join(lines)
