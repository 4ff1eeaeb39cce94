"""MLflow runs that exist before their jobs do: status SCHEDULED, the id kept in `run.json`."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from pipeline import server
from pipeline.capture import user
from pipeline.config import TrainConfig
from pipeline.runfolder import read_run_json
from shards import store

PARENT = "mlflow.parentRunId"
ANNOUNCED = "lacuna.announced"


def announce(configs: Sequence[TrainConfig], runs: Sequence[str], name: str) -> list[str | None]:
    """MLflow ids for the runs; one that has an id keeps it. Several get a parent called `name`.

    Raises ServerError where the server does not answer.
    """
    server.ask_once()
    uri = server.uri_for(runs[0], configs[0].root if configs[0].run is None else None)
    client = server.connect(uri)
    with server.explained(uri):
        recipe = configs[0].experiment or "train"
        wanted = configs[0].tracking.experiment or f"{user()}/{recipe}"
        experiment = server.experiment_id(client, uri, wanted)
        parent = None
        if len(runs) > 1:
            parent = _parent(client, experiment, name)
        return [_one(client, experiment, run, parent) for run in runs]


def _one(client: Any, experiment: str, run: str, parent: str | None) -> str:
    if known := read_run_json(run).get("mlflow_run_id"):
        return str(known)
    place = f"{socket.gethostname()} {os.path.abspath(run) if store.is_local(run) else run}"
    uid = hashlib.sha256(place.encode()).hexdigest()[:32]
    same = f"tags.`{ANNOUNCED}` = '{uid}' and tags.`job.state` = 'queued'"
    # One that is there was made by a submit that failed afterwards, or never heard the answer.
    found = client.search_runs([experiment], same, max_results=1)
    tags = {"mlflow.runName": run.rstrip("/").rpartition("/")[2], "job.state": "queued"}
    tags |= {ANNOUNCED: uid, **({PARENT: parent} if parent else {})}
    made = found[0] if found else client.create_run(experiment, tags=tags)
    client.update_run(made.info.run_id, status="SCHEDULED")
    return str(made.info.run_id)


def _parent(client: Any, experiment: str, name: str) -> str:
    found = client.search_runs([experiment], f"tags.`lacuna.sweep` = '{name}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"mlflow.runName": name, "lacuna.sweep": name}
    made = client.create_run(experiment, tags=tags)
    client.set_terminated(made.info.run_id)
    return str(made.info.run_id)
