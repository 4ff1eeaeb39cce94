"""`runs close`: end abandoned runs in MLflow (job over or process gone, end not recorded).

A run is left alone while a process holds its lock, and while its job waits, runs, may be started
again, or has an unknown state.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from jobs.spec import JobState
from pipeline.common.console import say
from pipeline.common.secrets import redact
from pipeline.config.schema import RunsConfig
from pipeline.runs import job_record
from pipeline.runs.folder import folders, is_held
from pipeline.runs.run_json import read_run_json
from pipeline.tracking.client import search
from pipeline.tracking.delivery import HEARTBEAT
from pipeline.tracking.lifecycle import original
from pipeline.tracking.remote_spool import read_state
from shards import store
from shards.upkeep import parse_age

ENDS = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED"}


def close(client: Any, config: RunsConfig) -> list[dict[str, Any]]:
    """Set the status of each dead run, and `job.error` of one that did not finish."""
    closed = []
    for run, status, reason in dead(client, config):
        client.set_tag(run.info.run_id, "job.state", "closed")
        if status != "FINISHED":
            client.set_tag(run.info.run_id, "job.error", redact(reason))
        client.set_terminated(run.info.run_id, status)
        identity = {"run_id": run.info.run_id, "name": run.info.run_name}
        closed.append({**identity, "status": status, "reason": reason})
    return closed


def dead(client: Any, config: RunsConfig) -> list[tuple[Any, str, str]]:
    """Return the runs that are over though their status is RUNNING or SCHEDULED.

    Each with the status to set and the reason.
    """
    experiments = [e.experiment_id for e in search(client.search_experiments)]
    limit, known = parse_age(config.older_than or "24h"), _known(config.root)
    over = []
    for status in ("RUNNING", "SCHEDULED"):
        for run in search(client.search_runs, experiments, f"attributes.status = '{status}'"):
            try:
                verdict = _verdict(run, known.get(run.info.run_id), limit)
            except (OSError, ValueError) as error:  # a scheduler or a bucket that does not answer
                say(f"{run.info.run_name} is not closed: {error}")
                continue
            over += [(run, *verdict)] if verdict else []
    return over


def silence(run: Any) -> float:
    """Return the seconds since the last event of a run arrived."""
    last = float(run.data.tags.get(HEARTBEAT, run.info.start_time))
    return time.time() - last / 1000


# --- step by step ---------------------------------------------------------------------------------


def _known(root: str) -> dict[str, str]:
    """Return folder or URL of each run that this machine knows, by the id of its MLflow run."""
    places = {}
    for run in _runs(root):
        with suppress(ValueError, OSError):
            known = read_run_json(run)
            if known.get("mlflow_run_id") and not original(run, known):
                places[str(known["mlflow_run_id"])] = run
    return places


def _runs(root: str) -> Iterator[str]:
    if not store.is_local(root):
        yield from (store.join(root, name) for name in store.names(root))
    elif store.local(root).is_dir():
        yield from map(str, folders(root))
    with suppress(OSError, ValueError):  # an unreachable bucket must not hide other runs
        for record in job_record.every(root):
            yield from record.trained if isinstance(record, job_record.SubmittedJob) else ()


def _verdict(run: Any, place: str | None, limit: float) -> tuple[str, str] | None:
    """Return the status and the reason of a run that is over, None for another.

    place: the run's folder or URL, if known. limit: seconds of silence after which a run counts as
    dead where nothing else is known of it.
    """
    long = silence(run) > limit
    record = job_record.read(place) if place else None
    if record and place:
        job = record.status()
        state = job.elements.get(_element(record, place), job.state)
        if state.live or state is JobState.UNKNOWN and not long or is_held(place):
            return None
        who = f"{record.cluster['scheduler']} job {record.number}"
        return ENDS.get(state, "KILLED"), f"{who} is {state.value}: {job.reason}".rstrip(": ")
    if run.info.status == "SCHEDULED":  # it may wait for a job that is not recorded here
        return None
    if place and is_held(place):
        return None
    ended = read_state(store.join(place, "spool")).get("ended") if place else None
    if place and ended in ("FINISHED", "FAILED", "KILLED"):
        return ended, f"its end was not sent yet: `sync {place}` sends the remaining events"
    # A lock that is held on another machine may be invisible here.
    host = read_run_json(place).get("launcher", {}).get("host") if place else None
    if place and (not store.is_local(place) or host == socket.gethostname()):
        return "KILLED", "its processes are gone and recorded no end"
    return ("KILLED", f"silent for {silence(run) / 3600:.1f} h") if long else None


def _element(record: job_record.SubmittedJob, place: str) -> str:
    """Return the element of an array job that trains the run."""
    names = [store.name(point) for point in record.points]
    name = store.name(place)
    return str(names.index(name)) if name in names else ""
