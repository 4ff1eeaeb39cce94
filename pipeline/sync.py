"""`sync`: sends the tracking events that a run could not send, or was told not to.

With `watch=true` it goes on, for runs with `tracking.drain=false` on nodes that have no route to
the server: start it where there is one, a login node, on the folder that holds the runs.
"""

import signal
import threading
from pathlib import Path
from typing import Any

from pipeline import server
from pipeline.config import SyncConfig
from pipeline.remotespool import fetch_spool, push_spool, spool_folder
from pipeline.sending import Sender
from pipeline.spool import Unsent
from shards import store

DEPTH = 3
EVALUATION = "evaluation"  # a finished run's later findings have a spool of their own there


def main(config: SyncConfig) -> dict[str, Any]:
    """Sends what waits below `dir`: a run's folder or URL, or a folder of runs.

    Returns sent, left, rejected and the same for each run. Raises ServerError if something is left
    that could not be sent, ValueError if there is no run.
    """
    senders: dict[str, Sender] = {}
    if not config.watch:
        found = _senders(config.dir, senders)
        if not found:
            raise ValueError(f"{store.display(config.dir)} holds no run: name a run's folder")
        troubles = _round(found)
        result = _told(found)
        if troubles:
            raise server.ServerError(f"{result['left']} events wait: {'; '.join(troubles)}")
        return result
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(2.0 if senders else 0.0):
        _round(_senders(config.dir, senders))
    return _told(list(senders.values()))


def dry_run(config: SyncConfig) -> str:
    found = _senders(config.dir, {})
    if not found:
        raise ValueError(f"{store.display(config.dir)} holds no run: name a run's folder")
    return "\n".join(
        f"would send {Unsent(s.folder).count()} events of {store.display(s.run)} to "
        f"{server.shown(s.uri)}"
        for s in found
    )


def _senders(where: str, known: dict[str, Sender]) -> list[Sender]:
    """A Sender for each spool below `where`; those of an earlier round are kept."""
    if not store.is_local(where):
        pairs = [(where, spool_folder(where))]
        fetch_spool(where, spool_folder(where))
    else:
        top = store.local(where)
        spools = [top / "spool", top / EVALUATION / "spool"]
        spools += [p for depth in range(1, DEPTH + 1) for p in top.glob("*/" * depth + "spool")]
        pairs = [(str(_run_of(p)), p) for p in dict.fromkeys(spools) if p.is_dir()]
    for run, folder in pairs:
        if str(folder) not in known and folder.is_dir():
            known[str(folder)] = Sender(run, server.uri_for(run), folder)
    return list(known.values())


def _run_of(spool: Path) -> Path:
    return spool.parent.parent if spool.parent.name == EVALUATION else spool.parent


def _round(senders: list[Sender]) -> list[str]:
    """Sends once what waits in each; what hindered it, in lines without repetition."""
    troubles = []
    for sender in senders:
        if not Unsent(sender.folder).count():
            continue
        try:
            if not sender.once():
                sender.tell("another process is sending this run's events")
                continue
            sender.tell(None)
            if not store.is_local(sender.run):
                push_spool(sender.run, sender.folder)
        except Exception as error:
            line = server.explain(error, sender.uri) or f"{type(error).__name__}: {error}"
            sender.tell(line)
            troubles.append(line)
    return list(dict.fromkeys(troubles))


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
