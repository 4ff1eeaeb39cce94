"""`submit VERB … [then VERB …]`: verbs as jobs, with everything decided before the queue.

The configuration is resolved here and written to the job's folder, the code is a commit, the run's
id and MLflow run exist before the job does: a requeue changes none of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from typing import Any

from jobs import scheduler
from jobs.scheduler import Stage
from jobs.spec import SubmitError, Unheard
from pipeline.common import signals
from pipeline.common.console import say
from pipeline.runs import checkpoints, job_record
from pipeline.runs.identity import check_same, folder_of
from pipeline.runs.job_record import SubmittedJob
from pipeline.submission import staging
from pipeline.submission.job import job_of
from pipeline.submission.plan import Part, parse
from pipeline.submission.staging import (
    announce,
    forget_pods,
    write_code,
    write_configs,
    write_weights,
)
from pipeline.training import pretrained
from shards import store


def main(words: Sequence[str], dry_run: bool = False) -> Any:
    """Does, or with `dry_run` only shows, or with check=true only asks. See `show`."""
    parts = parse(words)
    stages = [Stage(*job_of(part, dry_run)) for part in parts]
    if dry_run:
        return scheduler.render(stages)
    stages = [Stage(job, scheduler.located(cluster)) for job, cluster in stages]
    if any(part.settings.check for part in parts):
        return {"check": scheduler.ask(stages)}
    scheduler.render(stages)
    with ExitStack() as locks:
        for place in sorted({place for part in parts for place in _places(part)}):
            locks.enter_context(staging.held_for_submission(place))
        _refuse_live(parts)
        for part in parts:
            _preflight(part, first=part is parts[0])
        scheduler.judge(stages)  # whatever it refuses, before anything is written
        records = _submitted(parts, stages)
    return {"jobs": [_told(*each) for each in zip(parts, stages, records)]}


def _submitted(parts: Sequence[Part], stages: Sequence[Stage]) -> list[SubmittedJob]:
    """Each job's record lies there before the scheduler is asked: whatever kills us then, `status`
    and the next `submit` find the job by its name."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    records = [
        _record(part, stage, now, sought)
        for part, stage, sought in zip(parts, stages, scheduler.sought(stages))
    ]
    with ExitStack() as undo:
        for part, stage, record in zip(parts, stages, records):
            for place in _places(part):
                staging.keep_place(undo, place, ("config.yaml", job_record.NAME))
            for name in ("job.sbatch", "job.sh"):
                staging.keep(undo, store.join(part.folder, name))
            write_configs(part, announce(part, undo))
            write_weights(part, undo)
            write_code(part, stage, undo)
            forget_pods(stage, undo)
            job_record.write(record)
        for record in records:
            job_record.point_to(record)
        with signals.unstopped() as stopped:
            try:
                numbers = scheduler.submit(stages, [record.before for record in records])
            except Unheard:
                undo.pop_all()  # what may be in the queue keeps its record
                raise
            undo.pop_all()
            records = [replace(r, number=number) for r, number in zip(records, numbers)]
            for record in records:
                try:
                    job_record.write(record)
                except (OSError, ValueError) as error:
                    say(f"{record.id} is in the queue, its number {record.number} could not be "
                        f"written, `status` will ask for it: {error}")  # fmt: skip
            for record in records if stopped else ():
                say(f"{record.id} is in the queue already: `cancel {record.id}` takes it out")
    return records


def _record(part: Part, stage: Stage, now: str, sought: tuple[str, ...]) -> SubmittedJob:
    last = job_record.read(part.folder)
    last = last and last.settled()
    return SubmittedJob(
        id=part.id, verb=part.verb, run=stage.job.run, folder=stage.job.folder, number="",
        cluster=job_record.where_of(stage.cluster), submitted=now, commit=stage.job.commit,
        points=tuple(part.runs) if len(part.points) > 1 else (), pods=scheduler.pods(stage),
        before=tuple(n for n in (*last.before, last.number) if n) if last else (),
        sought=sought)  # fmt: skip


def _told(part: Part, stage: Stage, record: SubmittedJob) -> dict[str, Any]:
    job, told = stage.job, {"number": record.number, "scheduler": part.cluster.scheduler}
    return {"id": job.id, "verb": job.verb, "run": job.run, "folder": job.folder, **told}


def show(result: Any) -> str:
    if isinstance(result, str):
        return result
    if "check" in result:
        return "\n".join(result["check"])
    lines = [f"{j['verb']} {j['id']} is {j['scheduler']} job {j['number']}" for j in result["jobs"]]
    last = result["jobs"][-1]["id"]
    return "\n".join(
        [*lines, f"python -m pipeline status {last}", f"python -m pipeline logs {last} -f"]
    )


# --- what is written before the job exists --------------------------------------------------------


def _places(part: Part) -> set[str]:
    """The job's folder, and the runs that it trains."""
    return {part.folder, *(part.runs if part.trains else ())}


def _refuse_live(parts: Sequence[Part]) -> None:
    for part in parts:
        for place in _places(part):
            record = job_record.read(place)
            record = record and record.settled()
            if record and (found := record.status()).state.live:
                raise SubmitError(
                    f"{record.id} is {found.line()} as {record.cluster['scheduler']} job "
                    f"{record.number}: `logs {record.id}` to watch, `cancel {record.id}` to stop it"
                )


def _preflight(part: Part, first: bool) -> None:
    """Refuse here what every node would; what an earlier stage makes is not there to be seen."""
    for point in part.points:
        if first:
            try:
                _look(part, point.config)
            except OSError as error:
                say(f"not verified from here: {' '.join(str(error).split())}")
        elif part.verb == "train":
            pretrained.check(point.config)
            check_same(point.config, folder_of(point.config))


def _look(part: Part, config: Any) -> None:
    """What the verb itself would refuse, as far as it can be seen without torch."""
    if part.verb == "train":
        from pipeline.launch.topology import process_count
        from pipeline.training.preflight import preflight

        cluster = part.cluster
        here = cluster.scheduler == "local"
        preflight(config, process_count(config) if here else cluster.nodes * cluster.processes)
        return
    from shards.manifest import open_manifest

    # A claim is not mounted here: of what pods read only what lies in a bucket can be seen.
    pods = part.cluster.scheduler == "kubernetes"
    given = {
        "evaluate": ("data.url", "masks.url", "checkpoint"),
        "shard": ("source",) if getattr(config, "action", "write") == "write" else (),
    }
    for name in given.get(part.verb, ()):
        url = reduce(getattr, name.split("."), config)
        if url is None or pods and store.is_local(url):
            continue
        if name == "checkpoint":
            checkpoints.find(url)
        elif name != "source":
            open_manifest(url)
        elif store.is_local(url) and not store.local(url).expanduser().exists():
            raise SubmitError(f"source={url} does not exist: give the folder or archive to shard")
