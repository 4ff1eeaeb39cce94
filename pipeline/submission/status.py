"""`status [ID]`: how submitted jobs are, and why: waiting for what, killed by what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from jobs.cause import cause, follows
from jobs.spec import JobState, SubmitError
from pipeline.config.schema import StatusConfig
from pipeline.runs import job_record
from pipeline.runs.job_record import SubmittedJob, Unread
from pipeline.runs.run_json import read_run_json
from pipeline.submission.logs import errors, last_words
from shards import store

AT_ONCE = 8  # jobs asked about: each takes a process or more, and years leave many


def main(config: StatusConfig) -> dict[str, Any]:
    """One job, or every job under `root` and every other that this machine knows of."""
    if config.id is not None:
        return {"jobs": [described(job_record.find(config.id, config.root))]}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {"jobs": list(pool.map(_shown, job_record.every(config.root)))}


def _shown(record: SubmittedJob | Unread) -> dict[str, Any]:
    """One that cannot be told of hides no other."""
    if isinstance(record, SubmittedJob):
        try:
            return described(record)
        except (OSError, ValueError) as error:
            record = Unread(record.folder, " ".join(str(error).split()))
    place = store.display(record.place)
    reason = record.reason if place in record.reason else f"{place}: {record.reason}"
    blank = dict.fromkeys(("verb", "scheduler", "number", "submitted", "commit"), "")
    told = {**blank, "id": store.name(place), "run": place, "restarts": 0}
    return {**told, "state": JobState.UNKNOWN.value, "reason": reason}


def described(record: SubmittedJob) -> dict[str, Any]:
    """State, reason, and the error line of what failed."""
    with suppress(SubmitError):  # which its status repeats
        record = record.settled()
    told: dict[str, Any] = {
        "id": record.id,
        "verb": record.verb,
        "run": record.run,
        "scheduler": record.cluster["scheduler"],
        "number": record.number,
        "submitted": record.submitted,
        "commit": record.commit,
    }
    try:
        found = record.status()
    except SubmitError as error:
        return {**told, "state": JobState.UNKNOWN.value, "reason": str(error), "restarts": 0}
    told |= {"state": found.state.value, "reason": found.reason, "restarts": found.restarts}
    if found.elements:
        told["elements"] = {k: v.value for k, v in found.elements.items()}
    if record.points:
        told["points"] = list(record.points)
    if found.state is JobState.FAILED:
        said = _error(record)
        # A task that was killed is named already; what its peers say of it is no news.
        peers = said is not None and ": task" in found.reason and follows(said)
        told["error"] = None if peers else said
    return told


def _error(record: SubmittedJob) -> str | None:
    """What the launchers left, else what `run.json` holds, else the last thing the job said."""
    error = cause(errors(record))
    if error is None and record.verb == "train" and not record.points:
        error = read_run_json(record.run).get("error")
    return str(error) if error else last_words(record)


def show(result: dict[str, Any]) -> str:
    """A line a job, its error and the runs of a sweep below it."""
    lines = []
    for job in result["jobs"]:
        again = (
            f"{job['restarts']} restart{'s' * (job['restarts'] != 1)}" if job["restarts"] else ""
        )
        where = f"{job['scheduler']} {job['number']}".strip()
        words = [job["id"], job["state"], job["reason"], again, where]
        lines.append("  ".join(word for word in words if word))
        if job.get("error"):
            lines.append(f"    {job['error']}")
        states = job.get("elements", {})
        for index, run in enumerate(job.get("points", ())):
            lines.append(f"    {states.get(str(index), '?'):<12} {run}")
    return "\n".join(lines) or "no job was submitted"
