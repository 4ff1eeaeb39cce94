"""Record in MLflow what happens to a run outside its training.

`submit` creates the run before its job starts (status SCHEDULED, the id in `run.json`), the
launcher ends the run of killed workers, and evaluations add their results afterwards.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.environment import user
from pipeline.common.secrets import redact
from pipeline.config.schema import TrainConfig
from pipeline.runs.run_json import Facts, place_of, read_run_json, update_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import connect, experiment_id, no_retries, recorded_run, uri_for
from pipeline.tracking.delivery import PARENT, clean
from pipeline.tracking.remote_spool import STATE, push_spool, read_state, spool_folder
from pipeline.tracking.sender import Sender, say
from pipeline.tracking.spool import Spool, write_json
from shards import store

ANNOUNCED = "lacuna.announced"


class Announced(NamedTuple):
    """An MLflow run that waits for its job.

    run: its folder or URL, None for a sweep's parent. before: its earlier status, None if new.
    """

    run: str | None
    mlflow_run: str
    before: str | None


def announce(
    configs: Sequence[TrainConfig], runs: Sequence[str], name: str, given: str | None = None
) -> list[Announced]:
    """Create the MLflow runs that do not exist yet; several runs get a parent called `name`.

    given: the tracking URI of the job's environment if it differs from this process's.

    Raises ServerError if the server does not answer or a run was deleted there.
    """
    from pipeline.runs.identity import title  # only `submit` needs it

    no_retries()
    known = {run: _forked(run) for run in runs}
    recorded = [facts["mlflow_run_id"] for facts in known.values() if "mlflow_run_id" in facts]
    uri = _uri(configs[0], runs[0], given, known[runs[0]])
    client = connect(uri, run=runs[0])
    with errors.explained(uri):
        if recorded:  # its experiment may have another name by now
            experiment = recorded_run(client, recorded[0]).info.experiment_id
        else:
            recipe = configs[0].experiment or "train"
            given_name = configs[0].tracking.experiment or f"{user()}/{recipe}"
            experiment = experiment_id(client, uri, given_name)
        parents = [_parent(client, experiment, name)] if len(runs) > 1 else []
        parent = parents[0].mlflow_run if parents else None
        titles = {run: title(config, run) for config, run in zip(configs, runs)}
        ones = (_one(client, experiment, run, titles[run], known[run], parent) for run in known)
        return [*parents, *ones]


def withdraw(config: TrainConfig, announced: Sequence[Announced], given: str | None = None) -> None:
    """Undo `announce` after a failed submission: delete new runs, restore the status of others."""
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


def _forked(run: str) -> Facts:
    """Read run.json; that of a copied run is first changed to name no MLflow run."""
    known = read_run_json(run)
    keys = fork(run, known)
    return update_run_json(run, **keys) if keys else known


def _uri(config: TrainConfig, run: str, given: str | None, known: Facts | None = None) -> str:
    return uri_for(run, config.root if config.run is None else None, given, known)


def _one(
    client: Any, experiment: str, run: str, name: str, known: Facts, parent: str | None
) -> Announced:
    before = None
    if recorded := known.get("mlflow_run_id"):
        before = recorded_run(client, recorded).info.status
        client.set_tag(recorded, "job.state", "queued")
    else:
        recorded = _created(client, experiment, run, name, parent or known.get("mlflow_parent"))
    client.update_run(recorded, status="SCHEDULED")
    return Announced(run, str(recorded), before)


def _created(client: Any, experiment: str, run: str, name: str, parent: str | None) -> str:
    place = f"{socket.gethostname()} {place_of(run)}"
    uid = hashlib.sha256(place.encode()).hexdigest()[:32]
    same = f"tags.`{ANNOUNCED}` = '{uid}' and tags.`job.state` = 'queued'"
    # An existing one was created by a submission that failed later, or never got the answer.
    if existing := client.search_runs([experiment], same, max_results=1):
        return str(existing[0].info.run_id)
    tags = {"mlflow.runName": name, "job.state": "queued"}
    tags |= {ANNOUNCED: uid, **({PARENT: parent} if parent else {})}
    return str(client.create_run(experiment, tags=tags).info.run_id)


def _parent(client: Any, experiment: str, name: str) -> Announced:
    same = f"tags.`lacuna.sweep` = '{name}'"
    if existing := client.search_runs([experiment], same, max_results=1):
        return Announced(None, str(existing[0].info.run_id), existing[0].info.status)
    tags = {"mlflow.runName": name, "lacuna.sweep": name}
    parent = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(parent)
    return Announced(None, str(parent), None)


def original(run: str, known: Mapping[str, Any]) -> str | None:
    """Return the run that `run` was copied from; None if it was not copied, or was moved.

    known: its `run.json`. A copy's names another place, and the run that is there is the same one.
    """
    place = known.get("url")
    if place is None or place_of(place) == place_of(run):
        return None
    try:
        if not _identity(place, read_run_json(place)) & _identity(run, known):
            return None
    except (OSError, ValueError):  # another account's bucket, or what a later version wrote
        return None
    both_local = store.is_local(place) and store.is_local(run)
    return None if both_local and os.path.samefile(place, run) else place


def _identity(run: str, known: Mapping[str, Any]) -> set[Any]:
    """Return the ids of the MLflow run: MLflow's, and ours from before the server has answered."""
    ids = known.get("mlflow_run_id"), read_state(store.join(run, "spool")).get("uid")
    return set(ids) - {None}


def fork(run: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that give a copy of a run an MLflow run of its own; {} if it is no copy.

    known: its `run.json`. The copied spool is removed: the original sends its events.
    """
    place = original(run, known)
    if place is None:
        return {}
    store.remove(store.join(run, "spool"), recursive=True)
    copy = f"{store.display(run)} is a copy of {store.display(place)}"
    say(f"{copy}: it gets an MLflow run of its own, a child of the original's")
    parent = {"mlflow_parent": known.get("mlflow_run_id"), "url": place_of(run)}
    return {**parent, "mlflow_run_id": None, "mlflow_experiment_id": None}


def record(run: str, values: Mapping[str, float], step: int, files: Iterable[str] = ()) -> None:
    """Log an evaluation of a finished run: metrics at `step` (images seen) and files (URLs).

    The files become artifacts under `evaluation/`. Without an MLflow run, or while the server does
    not answer, everything waits in the spool.
    """
    folder = spool_folder(store.join(run, "evaluation"))
    spool = Spool(folder)
    finite = {clean(name): float(value) for name, value in values.items()}
    spool.append("metrics", values=finite, step=step)
    for url in files:
        spool.artifact(f"evaluation/{store.name(url)}", store.read(url))
    spool.close()
    if problem := send(run, folder):
        say(f"{problem}; buffering the evaluation's results in {folder}")


def ended(run: str, error: str, drains: bool) -> None:
    """Record that a run FAILED, and why, for workers that were killed before they could.

    The launcher calls it when its workers are gone. An end that is recorded already is kept.
    """
    folder = spool_folder(run)
    state = read_state(folder)
    if not state or state.get("ended") in ("FAILED", "KILLED") or original(run, read_run_json(run)):
        return
    spool = Spool(folder)
    spool.append("tags", values={"job.error": redact(error)})
    spool.append("finish", status="FAILED", uid=state["uid"])
    write_json(folder / STATE, {**state, "ended": "FAILED"})
    spool.close()
    no_retries()
    uri = uri_for(run)
    try:
        if drains:
            Sender(run, uri, folder).once()
        if not store.is_local(run):
            push_spool(run, folder, drains)
    except Exception as problem:  # it must not hide the error that ended the run
        command = f"python -m pipeline sync {store.display(run)}"
        say(f"{errors.explain(problem, uri)}; to send the run's end: {command}")


def send(run: str, folder: Path) -> str | None:
    """Send the events of a spool; return why that failed, None if it did not."""
    if not read_run_json(run).get("mlflow_run_id"):
        return f"{store.display(run)} has no MLflow run yet"
    uri = "MLflow"
    try:
        uri = uri_for(run)
        sent = Sender(run, uri, folder).once()
    except Exception as error:  # the scores are on disk, so an evaluation must not fail here
        return errors.explain(error, uri)
    return None if sent else "another process is sending this run's events"
