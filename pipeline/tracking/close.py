"""`runs close`: ends, in MLflow, the runs that nobody else will end any more.

Their job is over without a last word of theirs, or their process is gone. Never one that somebody
holds, nor one whose job waits, runs, may be started again, or cannot be asked about.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from jobs.spec import JobState
from pipeline.common.secrets import redact
from pipeline.config.schema import RunsConfig
from pipeline.runs import job_record
from pipeline.runs.folder import folders, is_held
from pipeline.runs.run_json import read_run_json
from pipeline.tracking.delivery import HEARTBEAT
from pipeline.tracking.remote_spool import read_state
from shards import store
from shards.upkeep import seconds

ENDS = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED"}


class Dead(NamedTuple):
    """An MLflow run that is over, the status that it gets, and why."""

    run: Any
    status: str
    reason: str


def close(client: Any, config: RunsConfig) -> list[dict[str, Any]]:
    """Gives each dead run its status, and `job.error` the reason of one that did not finish."""
    closed = []
    for run, status, reason in dead(client, config):
        client.set_tag(run.info.run_id, "job.state", "closed")
        if status != "FINISHED":
            client.set_tag(run.info.run_id, "job.error", redact(reason))
        client.set_terminated(run.info.run_id, status)
        told = {"run_id": run.info.run_id, "name": run.info.run_name}
        closed.append({**told, "status": status, "reason": reason})
    return closed


def dead(client: Any, config: RunsConfig) -> list[Dead]:
    """Of the runs that say RUNNING or SCHEDULED those that are over."""
    experiments = [e.experiment_id for e in client.search_experiments(max_results=1000)]
    limit, known = seconds(config.older_than or "24h"), _known(config.root)
    found = []
    for status in ("RUNNING", "SCHEDULED"):
        for run in every(client, experiments, f"attributes.status = '{status}'"):
            try:
                told = _verdict(run, known.get(run.info.run_id), limit)
            except (OSError, ValueError) as error:  # a scheduler or a bucket that does not answer
                print(f"{run.info.run_name} is left as it is: {error}", file=sys.stderr)
                continue
            found += [Dead(run, *told)] if told else []
    return found


def silence(run: Any) -> float:
    """Seconds since the last event of a run arrived."""
    last = float(run.data.tags.get(HEARTBEAT, run.info.start_time))
    return time.time() - last / 1000


def every(client: Any, experiments: list[str], text: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_runs(experiments, text, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


# --- step by step ---------------------------------------------------------------------------------


def _known(root: str) -> dict[str, str]:
    """Folder or URL of each run that this machine knows of, by the id of its MLflow run."""
    found = {}
    for run in _runs(root):
        with suppress(ValueError, OSError):
            if mlflow_run := read_run_json(run).get("mlflow_run_id"):
                found[str(mlflow_run)] = run
    return found


def _runs(root: str) -> Iterator[str]:
    if not store.is_local(root):
        yield from (store.join(root, name) for name in store.names(root))
    elif store.local(root).is_dir():
        yield from map(str, folders(root))
    with suppress(OSError, ValueError):  # a bucket that is gone hides no run of others
        for record in job_record.every(root):
            yield from record.trained if isinstance(record, job_record.SubmittedJob) else ()


def _verdict(run: Any, place: str | None, limit: float) -> tuple[str, str] | None:
    long = silence(run) > limit
    record = job_record.read(place) if place else None
    if record and place:
        found = record.status()
        state = found.elements.get(_element(record, place), found.state)
        if state.live or state is JobState.UNKNOWN and not long or is_held(place):
            return None
        who = f"{record.cluster['scheduler']} job {record.number}"
        return ENDS.get(state, "KILLED"), f"{who} is {state.value}: {found.reason}".rstrip(": ")
    if run.info.status == "SCHEDULED":  # by whom? It may wait for what we do not know
        return None
    if place and is_held(place):
        return None
    ended = read_state(store.join(place, "spool")).get("ended") if place else None
    if place and ended in ("FINISHED", "FAILED", "KILLED"):
        return ended, f"it ended, which could not be sent: `sync {place}` sends the rest"
    if place and (not store.is_local(place) or _host(place) == socket.gethostname()):
        return "KILLED", "its processes are gone, and said nothing"
    return ("KILLED", f"silent for {silence(run) / 3600:.1f} h") if long else None


def _host(place: str) -> str | None:
    """Where its launcher ran: another machine's lock on a shared disk may not be seen here."""
    return read_run_json(place).get("launcher", {}).get("host")


def _element(record: job_record.SubmittedJob, place: str) -> str:
    """Which element of the job trains the run."""
    names = [store.name(point) for point in record.points]
    name = store.name(place)
    return str(names.index(name)) if name in names else ""
