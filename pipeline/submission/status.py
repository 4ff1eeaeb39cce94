"""Show the state of submitted jobs and the reason: `status [ID]`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from jobs.cause import cause, follows
from jobs.spec import JobState, SubmitError
from pipeline.common.errors import one_line
from pipeline.config.schema import StatusConfig
from pipeline.runs import job_record
from pipeline.runs.job_record import SubmittedJob, Unread
from pipeline.runs.run_json import read_run_json
from pipeline.submission.logs import errors, last_output
from shards import store

CONCURRENT = 8  # queries: each starts processes, and old jobs accumulate


def main(config: StatusConfig) -> dict[str, Any]:
    """Return one job, or all jobs under `root` and all that were submitted from this machine."""
    if config.id is not None:
        return {"jobs": [described(job_record.find(config.id, config.root))]}
    with ThreadPoolExecutor(CONCURRENT) as pool:
        return {"jobs": list(pool.map(_shown, job_record.every(config.root)))}


def _shown(record: SubmittedJob | Unread) -> dict[str, Any]:
    """Describe one job; an unreadable one must not hide the others."""
    if isinstance(record, SubmittedJob):
        try:
            return described(record)
        except (OSError, ValueError) as error:
            record = Unread(record.folder, one_line(error))
    place = store.display(record.place)
    reason = record.reason if place in record.reason else f"{place}: {record.reason}"
    blank = dict.fromkeys(("command", "verb", "scheduler", "number", "submitted", "commit"), "")
    known = {**blank, "id": store.name(place), "run": place, "restarts": 0}
    return {**known, "state": JobState.UNKNOWN.value, "reason": reason}


def described(record: SubmittedJob) -> dict[str, Any]:
    """Return a job's state and reason, and the error of a failed one."""
    with suppress(SubmitError):  # `record.status` raises it again
        record = record.settled()
    job: dict[str, Any] = {
        "id": record.id,
        "command": record.verb,
        "verb": record.verb,  # the name before
        "run": record.run,
        "scheduler": record.cluster["scheduler"],
        "number": record.number,
        "submitted": record.submitted,
        "commit": record.commit,
    }
    try:
        status = record.status()
    except SubmitError as error:
        return {**job, "state": JobState.UNKNOWN.value, "reason": str(error), "restarts": 0}
    job |= {"state": status.state.value, "reason": status.reason, "restarts": status.restarts}
    if status.elements:
        job["elements"] = {k: v.value for k, v in status.elements.items()}
    if record.points:
        job["points"] = list(record.points)
    if record.verb == "train" and not record.points:
        with suppress(OSError, ValueError):  # causes, times, and seconds and images that they cost
            job["restarts_in_place"] = read_run_json(record.run).get("restarts", [])
    if status.state is JobState.FAILED:
        line = _error(record)
        # If the reason names a killed task, an error about a lost peer adds nothing.
        redundant = line is not None and ": task" in status.reason and follows(line)
        job["error"] = None if redundant else line
    return job


def _error(record: SubmittedJob) -> str | None:
    """Return the launchers' error, else that in run.json, else the job's last line of output."""
    error = cause(errors(record))
    if error is None and record.verb == "train" and not record.points:
        error = read_run_json(record.run).get("error")
    return str(error) if error else last_output(record)


def show(result: dict[str, Any]) -> str:
    """Format one line per job, with its error and the runs of a sweep below."""
    lines = []
    for job in result["jobs"]:
        count = job["restarts"]
        again = f"{count} restart{'s' * (count != 1)}" if count else ""
        where = f"{job['scheduler']} {job['number']}".strip()
        cells = [job["id"], job["state"], job["reason"], again, where]
        lines.append("  ".join(cell for cell in cells if cell))
        if again := job.get("restarts_in_place"):
            cost = sum(each.get("seconds", 0) for each in again)
            lines.append(f"    in place {len(again)} x, {cost:.0f} s; last: {again[-1]['cause']}")
        if job.get("error"):
            lines.append(f"    {job['error']}")
        states = job.get("elements", {})
        for index, run in enumerate(job.get("points", ())):
            lines.append(f"    {states.get(str(index), '?'):<12} {run}")
    return "\n".join(lines) or "no jobs were submitted"
