"""`submit VERB … [then VERB …]`: verbs as jobs, with everything decided before the queue.

The configuration is resolved here and written to the job's folder, the code is a commit, the run's
id and MLflow run exist before the job does: a requeue changes none of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import scheduler, snapshot
from jobs.scheduler import Stage
from jobs.spec import SubmitError
from pipeline import jobrecord
from pipeline.identity import check_same, folder_of
from pipeline.jobplan import ROOT, Part, job_of, parse, say
from shards import store


def main(words: Sequence[str], dry_run: bool = False) -> Any:
    """Does, or with `dry_run` only shows, or with check=true only asks. See `show`."""
    parts = parse(words)
    stages = [Stage(*job_of(part, dry_run)) for part in parts]
    if dry_run:
        return scheduler.render(stages)
    if parts[0].settings.check:
        return {"check": scheduler.ask(stages)}
    _refuse_live(parts)
    scheduler.render(stages)  # whatever it refuses, before anything is written
    for place, part in enumerate(parts):
        _preflight(part, first=place == 0)
        _write_configs(part, _announce(part))
        _write_code(part, stages[place])
    numbers = scheduler.submit(stages)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for part, stage, number in zip(parts, stages, numbers):
        before = jobrecord.read(part.folder)
        record = jobrecord.Record(
            id=part.id, verb=part.verb, run=stage.job.run, folder=stage.job.folder, number=number,
            cluster=jobrecord.where_of(part.cluster), submitted=now, commit=stage.job.commit,
            points=tuple(part.runs) if len(part.points) > 1 else (),
            before=(*before.before, before.number) if before else ())  # fmt: skip
        jobrecord.write(record)
    return {"jobs": [_told(*each) for each in zip(parts, stages, numbers)]}


def _told(part: Part, stage: Stage, number: str) -> dict[str, Any]:
    job, told = stage.job, {"number": number, "scheduler": part.cluster.scheduler}
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


def _refuse_live(parts: Sequence[Part]) -> None:
    for part in parts:
        for place in {part.folder, *(part.runs if len(part.points) > 1 else ())}:
            record = jobrecord.read(place)
            if record and (found := record.status()).state.live:
                raise SubmitError(
                    f"{record.id} is {found.line()} as {record.cluster['scheduler']} job "
                    f"{record.number}: `logs {record.id}` to watch, `cancel {record.id}` to stop it"
                )


def _preflight(part: Part, first: bool) -> None:
    """Refuse here what every node would; what an earlier stage makes is not there to be seen."""
    if part.verb != "train":
        return
    from pipeline.launch import preflight

    for point in part.points:
        if first:
            try:
                preflight(point.config, part.cluster.nodes * part.cluster.processes)
            except OSError as error:
                say(f"not verified from here: {' '.join(str(error).split())}")
        else:
            check_same(point.config, folder_of(point.config))


def _write_configs(part: Part, mlflow_runs: Sequence[str | None]) -> None:
    from pipeline.runfolder import update_run_json

    if part.verb != "train":
        text = part.points[0].yaml()
        store.write(store.join(part.folder, "config.yaml"), text.encode())
        return
    for point, run, mlflow_run in zip(part.points, part.runs, mlflow_runs):
        named = replace(point, config=replace(point.config, run=run))
        store.write(store.join(run, "config.yaml"), named.yaml().encode())
        if mlflow_run:
            update_run_json(run, mlflow_run_id=mlflow_run)


def _write_code(part: Part, stage: Stage) -> None:
    if stage.job.code is None:
        return
    taken = snapshot.take(ROOT, part.cluster.allow_dirty)
    data = snapshot.archive(taken)
    if part.cluster.scheduler == "kubernetes":
        store.write(stage.job.code, data)
    else:
        snapshot.unpack(data, Path(stage.job.code))
    if taken.diff:
        store.write(store.join(stage.job.folder, "code", f"{taken.name}.diff"), taken.diff.encode())


def _announce(part: Part) -> list[str | None]:
    """MLflow runs with status SCHEDULED, the points of a sweep under one parent."""
    config = part.points[0].config
    if part.verb != "train" or not config.tracking.enabled:
        return [None] * len(part.points)
    from pipeline.announce import announce

    try:
        return announce([p.config for p in part.points], part.runs, part.id)
    except (ValueError, OSError) as error:
        if config.tracking.required:
            raise
        say(f"MLflow does not answer, the run will be made when it starts: {error}")
        return [None] * len(part.points)
