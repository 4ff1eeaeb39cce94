"""`sync`: send the tracking events that are still in the spools of runs.

With `watch=true` it keeps running, for runs with `tracking.drain=false` on nodes that cannot reach
the server: start it on a node that can, such as a login node, with the folder of the runs.
"""

import threading
from pathlib import Path
from typing import Any

from pipeline.common.locks import Held, leased
from pipeline.common.signals import STOP_SIGNALS, handled
from pipeline.config.schema import SyncConfig
from pipeline.tracking import client, errors
from pipeline.tracking.remote_spool import (
    fetch_spool,
    has_unsent,
    push_sent,
    read_state,
    spool_folder,
    tree,
)
from pipeline.tracking.sender import Sender
from pipeline.tracking.spool import Unsent
from shards import store

DEPTH = 3
EVALUATION = "evaluation"  # holds the spool of a run's evaluations
PAUSE = {True: 2.0, False: 15.0}  # seconds between rounds of watch=true, on a disk or in a bucket


def main(config: SyncConfig) -> dict[str, Any]:
    """Send the events of all runs at or below `dir`: a run's folder or URL, or a folder of runs.

    Returns the numbers of events sent, left and rejected, in total and per run. Raises ServerError
    if events could not be sent, ValueError if there is no run.
    """
    senders: dict[str, Sender] = {}
    if not config.watch:
        problems = _round(_require_runs(config.dir, senders))
        result = _summary(list(senders.values()))
        if problems:
            raise errors.ServerError(f"{result['left']} events not sent: {'; '.join(problems)}")
        return result
    stop = threading.Event()
    with handled(STOP_SIGNALS, lambda *_: stop.set()):
        while not stop.wait(PAUSE[store.is_local(config.dir)] if senders else 0.5):
            _round(_senders(config.dir, senders))
    return _summary(list(senders.values()))


def dry_run(config: SyncConfig) -> str:
    senders = _require_runs(config.dir, {})
    for sender in senders:
        if not store.is_local(sender.run):
            fetch_spool(sender.run, sender.folder)
    return "\n".join(
        f"would send {Unsent(s.folder).count()} events of {store.display(s.run)} to "
        f"{errors.display_uri(s.uri)}"
        for s in senders
    )


def _require_runs(where: str, known: dict[str, Sender]) -> list[Sender]:
    if senders := _senders(where, known):
        return senders
    raise ValueError(f"{store.display(where)} holds no run: give the folder of a run or of runs")


def _senders(where: str, known: dict[str, Sender]) -> list[Sender]:
    """Return a Sender for each spool at or below `where`; add new ones to `known`."""
    for run, folder in _local(where) if store.is_local(where) else _remote(where):
        if str(folder) not in known:
            known[str(folder)] = Sender(run, client.uri_for(run), folder)
    return list(known.values())


def _local(where: str) -> list[tuple[str, Path]]:
    top = store.local(where)
    spools = [p for depth in range(DEPTH + 1) for p in top.glob("*/" * depth + "spool")]
    holders = [(p.parent, p) for p in spools if p.is_dir()]
    return [(str(h.parent if h.name == EVALUATION else h), p) for h, p in holders]


def _remote(where: str) -> list[tuple[str, Path]]:
    """Return runs in a bucket that have a spool, and local spools of their evaluations."""
    names = store.names(where)
    runs = [where] if "spool" in names else [store.join(where, name) for name in names]
    spools = [(run, spool_folder(run)) for run in runs if "spool" in store.names(run)]
    scored = [(run, spool_folder(store.join(run, EVALUATION))) for run in runs]
    return spools + [(run, folder) for run, folder in scored if folder.is_dir()]


def _round(senders: list[Sender]) -> list[str]:
    """Send the events of each sender once; return the distinct problems, a line each."""
    problems = []
    for sender in senders:
        try:
            if not _send(sender):
                sender.report("another process is sending this run's events")
                continue
            sender.report(None)
        except Held as error:
            sender.report(f"{error.owner} holds the run and sends its events")
        except Exception as error:
            problems.append(errors.explain(error, sender.uri))
            sender.report(problems[-1])
    return list(dict.fromkeys(problems))


def _send(sender: Sender) -> bool:
    """Send the events once; False if another process of this machine is sending them."""
    if store.is_local(sender.run) or sender.folder != spool_folder(sender.run):
        return not Unsent(sender.folder).count() or sender.once()
    spool = store.join(sender.run, "spool")
    if not (has_unsent(sender.run) or Unsent(sender.folder).count()):
        return True
    # A trainer that sends its events holds the lock of its run. Next to one that only spools, the
    # lock of the spool lets only one of several `sync` send.
    with leased(sender.run if read_state(spool).get("drains", True) else spool, "synced"):
        fetch_spool(sender.run, sender.folder)
        if not sender.folder.is_dir():
            return True  # a node died while it copied its spool: there are no events yet
        before = tree(sender.folder)
        try:
            return sender.once()
        finally:
            push_sent(sender.run, sender.folder, before)


def _summary(senders: list[Sender]) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    for each in senders:
        numbers = {"sent": each.sent, "left": Unsent(each.folder).count()}
        runs.append({"run": store.display(each.run), **numbers, "rejected": each.rejected})
    totals = {key: sum(run[key] for run in runs) for key in ("sent", "left", "rejected")}
    return {**totals, "runs": runs}


def show(result: dict[str, Any]) -> str:
    lines = [f"{run['run']}: {run['sent']} sent, {run['left']} not sent" for run in result["runs"]]
    if result["rejected"]:
        lines.append(
            f"{result['rejected']} rejected by the server: see rejected.jsonl in the run's spool"
        )
    return "\n".join(lines)
