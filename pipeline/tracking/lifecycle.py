"""MLflow runs that exist before their jobs do: status SCHEDULED, the id kept in `run.json`."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.environment import user
from pipeline.common.secrets import redact
from pipeline.config.schema import TrainConfig
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import (
    ask_once,
    connect,
    default_root,
    experiment_id,
    tracking_uri,
    uri_for,
)
from pipeline.tracking.delivery import Delivery, clean
from pipeline.tracking.remote_spool import STATE, push_spool, read_state, spool_folder
from pipeline.tracking.sender import Sender, say
from pipeline.tracking.spool import Spool, Unsent, draining, write_json
from shards import store

PARENT = "mlflow.parentRunId"
ANNOUNCED = "lacuna.announced"


class Announced(NamedTuple):
    """An MLflow run that waits for its job. run: its folder or URL, None for a sweep's parent.
    before: the status that it had, None if it was made now."""

    run: str | None
    mlflow_run: str
    before: str | None


def announce(
    configs: Sequence[TrainConfig], runs: Sequence[str], name: str, given: str | None = None
) -> list[Announced]:
    """MLflow runs for the runs; one that has an id keeps it. Several get a parent called `name`.

    given: the tracking URI of the job's environment, where that is not this process's.

    Raises ServerError where the server does not answer, or knows a run as deleted.
    """
    ask_once()
    uri = _uri(configs[0], runs[0], given)
    client = connect(uri)
    with errors.explained(uri):
        recipe = configs[0].experiment or "train"
        wanted = configs[0].tracking.experiment or f"{user()}/{recipe}"
        experiment = experiment_id(client, uri, wanted)
        made = [_parent(client, experiment, name)] if len(runs) > 1 else []
        parent = made[0].mlflow_run if made else None
        return [*made, *(_one(client, experiment, run, parent) for run in runs)]


def withdraw(config: TrainConfig, announced: Sequence[Announced], given: str | None = None) -> None:
    """The scheduler refused: what was made is deleted, what was there is as it was."""
    uri = _uri(config, next(each.run for each in announced if each.run), given)
    client = connect(uri)
    with errors.explained(uri):
        for run, mlflow_run, before in announced:
            if before:
                client.update_run(mlflow_run, status=before)
                continue
            client.delete_run(mlflow_run)
            if run and read_run_json(run):
                update_run_json(run, mlflow_run_id=None)


def _uri(config: TrainConfig, run: str, given: str | None) -> str:
    return uri_for(run, config.root if config.run is None else None, given)


def _one(client: Any, experiment: str, run: str, parent: str | None) -> Announced:
    before = None
    if known := read_run_json(run).get("mlflow_run_id"):
        info = client.get_run(known).info
        if info.lifecycle_stage == "deleted":
            raise errors.ServerError(
                f"MLflow run {known} was deleted: restore it there, or remove mlflow_run_id from "
                f"run.json in {run} to record a new one"
            )
        before = info.status
        client.set_tag(known, "job.state", "queued")
    else:
        known = _made(client, experiment, run, parent)
    client.update_run(known, status="SCHEDULED")
    return Announced(run, str(known), before)


def _made(client: Any, experiment: str, run: str, parent: str | None) -> str:
    place = f"{socket.gethostname()} {os.path.abspath(run) if store.is_local(run) else run}"
    uid = hashlib.sha256(place.encode()).hexdigest()[:32]
    same = f"tags.`{ANNOUNCED}` = '{uid}' and tags.`job.state` = 'queued'"
    # One that is there was made by a submit that failed afterwards, or never heard the answer.
    if found := client.search_runs([experiment], same, max_results=1):
        return str(found[0].info.run_id)
    tags = {"mlflow.runName": store.name(run), "job.state": "queued"}
    tags |= {ANNOUNCED: uid, **({PARENT: parent} if parent else {})}
    return str(client.create_run(experiment, tags=tags).info.run_id)


def _parent(client: Any, experiment: str, name: str) -> Announced:
    found = client.search_runs([experiment], f"tags.`lacuna.sweep` = '{name}'", max_results=1)
    if found:
        return Announced(None, str(found[0].info.run_id), found[0].info.status)
    tags = {"mlflow.runName": name, "lacuna.sweep": name}
    made = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(made)
    return Announced(None, str(made), None)


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
            copy = Path(scratch, store.name(url))
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
    ask_once()
    uri = uri_for(run)
    try:
        if drains:
            Sender(run, uri, folder).once()
        if not store.is_local(run):
            push_spool(run, folder, drains)
    except Exception as trouble:  # the run has failed for another reason, which is told
        told = errors.explain(trouble, uri) or f"{type(trouble).__name__}: {trouble}"
        say(f"{told}; to send the run's end: python -m pipeline sync {store.display(run)}")


def send(run: str, folder: Path) -> str | None:
    """Sends what waits in the spool; what hindered it, else None."""
    if not read_run_json(run).get("mlflow_run_id"):
        return f"{store.display(run)} has no MLflow run yet"
    with draining(folder) as mine:
        if not mine:
            return "another process is sending them"
        try:
            uri = tracking_uri(default_root(run))
            unsent = Unsent(folder)
            delivery = Delivery(connect(uri), uri, run, unsent)
            while events := unsent.read():
                delivery.send(events)
        except Exception as error:  # the scores are on disk, whatever the server says
            return errors.explain(error, uri) or f"{type(error).__name__}: {error}"
    return None
