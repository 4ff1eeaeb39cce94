"""Submit commands as jobs: `submit COMMAND … [then COMMAND …]`.

Everything is decided before the job is queued, and a requeue changes none of it: the resolved
configuration is written to the job's folder, the code is a commit, and the run's ID and MLflow run
exist already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

from jobs import scheduler
from jobs.scheduler import Rendered, Stage
from jobs.snapshot import Snapshot
from jobs.spec import SubmissionUnconfirmed, SubmitError
from pipeline.common import signals
from pipeline.common.console import say
from pipeline.common.errors import one_line
from pipeline.config.commands import COMMANDS
from pipeline.runs import job_record
from pipeline.runs.checkpoints import split_address
from pipeline.runs.job_record import SubmittedJob
from pipeline.submission import staging
from pipeline.submission.job import job_of, take_snapshot
from pipeline.submission.plan import Part, parse
from pipeline.submission.staging import ExistingJob
from shards import store


def main(args: Sequence[str], dry_run: bool = False) -> Any:
    """Submit; with `dry_run` only return the text, with check=true only ask. See `show`."""
    parts = parse(args)
    snapshots = cache(partial(take_snapshot, dry_run=dry_run))
    stages = [Stage(*job_of(part, snapshots)) for part in parts]
    if not dry_run:
        stages = [Stage(job, scheduler.located(cluster)) for job, cluster in stages]
    rendered = scheduler.render(stages)
    if dry_run:
        return "\n".join([rendered.text, *(line for part in parts for line in _cost(part))])
    if any(part.settings.check for part in parts):
        return {"check": scheduler.ask(rendered)}
    with ExitStack() as locks:
        places = sorted({place for part in parts for place in part.places})
        for place in places:
            locks.enter_context(staging.held_for_submission(place))
        existing = {place: staging.existing_job(place) for place in places}
        for record in (job.record for job in existing.values()):
            if record and (status := record.status()).state.live:
                raise SubmitError(
                    f"{record.id} is {status.line()} as {record.cluster['scheduler']} job "
                    f"{record.number}: `logs {record.id}` to watch, `cancel {record.id}` to stop it"
                )
        made: set[str] = set()
        for part in parts:
            _preflight(part, made)
            made |= set(part.runs)
        scheduler.judge(rendered)  # before anything is written
        records = _submitted(parts, rendered, snapshots, existing)
    return {"jobs": [_result(record) for record in records]}


def _cost(part: Part) -> list[str]:
    """Return the GPU-hours of a sweep over recipes, as comments of the script or manifest."""
    configs = [point.config for point in part.points]
    if part.verb != "train" or len({config.experiment for config in configs}) < 2:
        return []
    from pipeline.training.forecast import gpu_hours  # imports torch

    return [f"# {line}" for line in gpu_hours(configs)]


def _submitted(
    parts: Sequence[Part],
    rendered: Rendered,
    snapshots: Callable[[bool], Snapshot],
    existing: Mapping[str, ExistingJob],
) -> list[SubmittedJob]:
    """Write all files, submit, and return the records.

    Each record is written before the scheduler is asked: if `submit` is killed then, `status` and
    the next `submit` find the job by its name.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    records = [
        _record(part, stage, existing[part.folder].record, now, key)
        for part, stage, key in zip(parts, rendered.stages, scheduler.search_keys(rendered))
    ]
    with ExitStack() as undo:
        # --- the files that the job reads
        for part, stage, record in zip(parts, rendered.stages, records):
            for place in part.places:
                staging.keep_place(undo, place, existing[place])
            for name in ("job.sbatch", "job.sh"):
                staging.keep(undo, store.join(part.folder, name))
            staging.write_configs(part, staging.announce_runs(part, undo))
            staging.write_carried(part, undo)
            if stage.job.code:
                staging.write_code(stage, snapshots(part.cluster.allow_dirty), undo)
            staging.forget_pods(stage, undo)
            job_record.write(record)
        for record in records:
            job_record.point_to(record)
        # --- the scheduler; from its answer on nothing is undone
        with signals.unstopped() as stopped:
            try:
                numbers = scheduler.submit(rendered, [record.before for record in records])
            except SubmissionUnconfirmed:
                undo.pop_all()  # a job that may be queued keeps its record
                raise
            undo.pop_all()
            records = [replace(r, number=number) for r, number in zip(records, numbers)]
            for record in records:
                try:
                    job_record.write(record)
                except (OSError, ValueError) as error:
                    say(f"{record.id} is queued, but its job ID {record.number} could not be "
                        f"written, `status` will look it up: {error}")  # fmt: skip
            for record in records if stopped else ():
                say(f"{record.id} is already queued: `cancel {record.id}` removes it")
    return records


def _record(
    part: Part, stage: Stage, last: SubmittedJob | None, now: str, key: tuple[str, ...]
) -> SubmittedJob:
    return SubmittedJob(
        id=part.id, verb=part.verb, run=stage.job.run, folder=stage.job.folder, number="",
        cluster=job_record.where_of(stage.cluster), submitted=now, commit=stage.job.commit,
        points=tuple(part.runs) if len(part.points) > 1 else (), pods=scheduler.pods(stage),
        before=tuple(n for n in (*last.before, last.number) if n) if last else (),
        sought=key)  # fmt: skip


def _result(record: SubmittedJob) -> dict[str, Any]:
    names = {"command": record.verb, "verb": record.verb}  # verb: the name before
    return {"id": record.id, **names, "run": record.run, "folder": record.folder,
            "number": record.number, "scheduler": record.cluster["scheduler"]}  # fmt: skip


def show(result: Any) -> str:
    if isinstance(result, str):
        return result
    if "check" in result:
        return "\n".join(result["check"])
    lines = [f"{j['verb']} {j['id']} is {j['scheduler']} job {j['number']}" for j in result["jobs"]]
    last = result["jobs"][-1]["id"]
    lines += [f"python -m pipeline status {last}", f"python -m pipeline logs {last} -f"]
    return "\n".join(lines)


# --- what is refused before the job exists --------------------------------------------------------


def _preflight(part: Part, made: set[str]) -> None:
    """Refuse what would fail on every node; `made`: outputs of earlier stages, not there yet."""

    def readable(url: str | None) -> bool:
        """Return whether the URL is there already; claims of pods may not be mounted here."""
        if url is None or split_address(url)[0] in made:
            return False
        claim = part.cluster.scheduler == "kubernetes" and store.is_local(url)
        return not claim or store.exists(url)

    if (inputs := COMMANDS[part.verb].inputs) is None:
        return
    for point, run in zip(part.points, part.runs):
        # With its folder set, the configuration is not hashed again.
        config = replace(point.config, run=run) if part.trains else point.config
        try:
            import_module(inputs).check_inputs(config, readable)
        except OSError as error:
            say(f"not verified from here: {one_line(error)}")
