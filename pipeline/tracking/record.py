"""What is found out about a run after its training goes into its MLflow run too.

A spool of its own, `<run>/evaluation/spool`: a training that is still writing is not disturbed,
its status is not touched, and an outage of the server loses nothing.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.runs.folder import read_run_json
from pipeline.tracking import client as server
from pipeline.tracking.client import default_root
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.keys import clean
from pipeline.tracking.provenance import redact
from pipeline.tracking.remote_spool import STATE, push_spool, read_state, spool_folder
from pipeline.tracking.sender import Sender, say
from pipeline.tracking.spool import Spool, Unsent, draining, write_json
from shards import store


def record(run: str, values: Mapping[str, float], step: int, files: Iterable[str] = ()) -> None:
    """Numbers at `step` (images seen) and files (URLs, kept under `evaluation/`) of a finished run.

    A run without MLflow run, or a server that does not answer, leaves them in the spool.
    """
    folder = spool_folder(store.join(run, "evaluation"))
    spool = Spool(folder)
    finite = {clean(name): float(value) for name, value in values.items()}
    spool.append("metrics", values=finite, step=step)
    for url in files:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            copy = Path(scratch, url.rsplit("/", 1)[-1])
            copy.write_bytes(store.read(url))
            if kept := spool.keep(copy):
                spool.append("artifact", folder="evaluation", files=[kept])
    spool.close()
    if trouble := send(run, folder):
        say(f"{trouble}; the evaluation's numbers wait in {folder}")


def ended(run: str, error: str, drains: bool) -> None:
    """What a killed process could not say of its run: that it FAILED, and why.

    For the launcher, once its workers are gone; a record that says so already stays as it is.
    """
    folder = spool_folder(run)
    state = read_state(folder)
    if not state or state.get("ended") in ("FAILED", "KILLED"):
        return
    spool = Spool(folder)
    spool.append("tags", values={"job.error": redact(error)})
    spool.append("finish", status="FAILED", uid=state["uid"])
    write_json(folder / STATE, {**state, "ended": "FAILED"})
    spool.close()
    server.ask_once()
    uri = server.uri_for(run)
    try:
        if drains:
            Sender(run, uri, folder).once()
        if not store.is_local(run):
            push_spool(run, folder, drains)
    except Exception as trouble:  # the run has failed for another reason, which is told
        told = server.explain(trouble, uri) or f"{type(trouble).__name__}: {trouble}"
        say(f"{told}; to send the run's end: python -m pipeline sync {store.display(run)}")


def send(run: str, folder: Path) -> str | None:
    """Sends what waits in the spool; what hindered it, else None."""
    if not read_run_json(run).get("mlflow_run_id"):
        return f"{store.display(run)} has no MLflow run yet"
    with draining(folder) as mine:
        if not mine:
            return "another process is sending them"
        try:
            uri = server.tracking_uri(default_root(run))
            unsent = Unsent(folder)
            delivery = Delivery(server.connect(uri), uri, run, unsent)
            while events := unsent.read():
                delivery.send(events)
        except Exception as error:  # the scores are on disk, whatever the server says
            return server.explain(error, uri) or f"{type(error).__name__}: {error}"
    return None
