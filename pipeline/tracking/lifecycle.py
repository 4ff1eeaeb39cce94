"""MLflow runs that exist before their jobs do: status SCHEDULED, the id kept in `run.json`."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.config.schema import TrainConfig
from pipeline.runs.folder import read_run_json, update_run_json
from pipeline.tracking import client as server
from pipeline.tracking.provenance import user
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
    server.ask_once()
    uri = _uri(configs[0], runs[0], given)
    client = server.connect(uri)
    with server.explained(uri):
        recipe = configs[0].experiment or "train"
        wanted = configs[0].tracking.experiment or f"{user()}/{recipe}"
        experiment = server.experiment_id(client, uri, wanted)
        made = [_parent(client, experiment, name)] if len(runs) > 1 else []
        parent = made[0].mlflow_run if made else None
        return [*made, *(_one(client, experiment, run, parent) for run in runs)]


def withdraw(config: TrainConfig, announced: Sequence[Announced], given: str | None = None) -> None:
    """The scheduler refused: what was made is deleted, what was there is as it was."""
    uri = _uri(config, next(each.run for each in announced if each.run), given)
    client = server.connect(uri)
    with server.explained(uri):
        for run, mlflow_run, before in announced:
            if before:
                client.update_run(mlflow_run, status=before)
                continue
            client.delete_run(mlflow_run)
            if run and read_run_json(run):
                update_run_json(run, mlflow_run_id=None)


def _uri(config: TrainConfig, run: str, given: str | None) -> str:
    return server.uri_for(run, config.root if config.run is None else None, given)


def _one(client: Any, experiment: str, run: str, parent: str | None) -> Announced:
    before = None
    if known := read_run_json(run).get("mlflow_run_id"):
        info = client.get_run(known).info
        if info.lifecycle_stage == "deleted":
            raise server.ServerError(
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
    tags = {"mlflow.runName": run.rstrip("/").rpartition("/")[2], "job.state": "queued"}
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
