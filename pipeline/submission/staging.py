"""Write the files of a submission, and roll them back if it is refused.

Each function registers on `undo` how to restore what it changes; nothing else is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jobs import scheduler, snapshot
from jobs.scheduler import Stage
from jobs.snapshot import Snapshot
from pipeline.common.console import say
from pipeline.common.locks import hold, leased, sign
from pipeline.config import outside
from pipeline.config.schema import CACHE
from pipeline.runs import job_record
from pipeline.runs.folder import SUBMITTING, folder_at
from pipeline.runs.identity import resolve_auto
from pipeline.runs.job_record import SubmittedJob
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.submission.plan import Part
from pipeline.training import pretrained
from shards import files, store


class ExistingJob(NamedTuple):
    """The jobs.json of an earlier submission: its bytes and its record, None if there is none."""

    data: bytes | None = None
    record: SubmittedJob | None = None


def existing_job(place: str) -> ExistingJob:
    """Read jobs.json in a folder or at a URL; ask the scheduler for a job ID that it lacks."""
    data = _read(store.join(place, job_record.NAME))
    record = job_record.parse(data, place) if data is not None else None
    return ExistingJob(data, record and record.settled())


def _read(url: str) -> bytes | None:
    try:
        return store.read(url)
    except (FileNotFoundError, NotADirectoryError):
        return None


def keep(undo: ExitStack, url: str) -> None:
    """Restore the file on undo; remove it if it does not exist now."""
    _restore(undo, url, _read(url))


def _restore(undo: ExitStack, url: str, data: bytes | None) -> None:
    if data is None:
        undo.callback(store.remove, url)
    else:
        undo.callback(store.write, url, data)


def keep_place(undo: ExitStack, place: str, existing: ExistingJob) -> None:
    """Restore the folder of a job or run on undo: its records, new state files, empty folders."""
    names = set(store.names(store.join(place, "logs")))
    undo.callback(_clean, place, names, blank=not store.exists(store.join(place, "run.json")))
    keep(undo, store.join(place, "config.yaml"))
    _restore(undo, store.join(place, job_record.NAME), existing.data)


def _clean(place: str, before: set[str], blank: bool) -> None:
    """Remove new state files, empty folders, and a run.json left empty by a withdrawn run."""
    if blank and not read_run_json(place):
        store.remove(store.join(place, "run.json"))
        store.remove(store.join(place, ".run.json.lock"))
    logs = store.join(place, "logs")
    for name in set(store.names(logs)) - before:
        if name.startswith("state-"):
            store.remove(store.join(logs, name))
    for name in ("logs", "code", "weights") if store.is_local(place) else ():
        with suppress(OSError):
            os.rmdir(store.local(place) / name)


@contextmanager
def held_for_submission(place: str) -> Iterator[None]:
    """Lock a job's folder or URL while it is submitted; afterwards remove the folder if empty.

    Raises ConfigError if another process holds the lock.
    """
    with ExitStack() as lock:
        if store.is_local(place):
            path = store.local(place).absolute() / SUBMITTING
            handle = lock.enter_context(hold(path, place, "submitted"))
            lock.callback(_unlock, path)
            sign(handle)
        else:
            lock.enter_context(leased(place, "submitted", ".submit/.lock"))
        yield


def _unlock(path: Path) -> None:
    files.remove(path)
    with suppress(OSError):
        path.parent.rmdir()


def write_configs(part: Part, mlflow_runs: dict[str, str]) -> None:
    """Write each run's config.yaml and MLflow run ID; for other jobs one config.yaml."""
    points = [replace(p, config=_carried(part, p.config)) for p in part.points]
    if not part.trains:
        text = points[0].yaml()
        store.write(store.join(part.folder, "config.yaml"), text.encode())
        return
    for point, run in zip(points, part.runs):
        # A resumed run keeps the first values of `auto`: bit-exact results depend on them.
        config = resolve_auto(point.config, folder_at(run))
        named = replace(point, config=replace(config, run=run))
        store.write(store.join(run, "config.yaml"), named.yaml().encode())
        if run in mlflow_runs:
            update_run_json(run, mlflow_run_id=mlflow_runs[run])


def _carried(part: Part, config: Any) -> Any:
    """Replace what `write_carried` copies by the copy: a pod sees nothing of this machine."""
    if part.verb == "train" and pretrained.from_cache(config):
        config = replace(config, weights=store.join(part.folder, "weights"))
    if _methods(config):
        config = replace(config, methods=replace(config.methods, path=_archive(part)))
    return config


def _methods(config: Any) -> str | None:
    """Return the folder of methods that a command of any kind is given."""
    methods = getattr(config, "methods", None)
    return methods and methods.path


def _archive(part: Part) -> str:
    folder = os.path.abspath(part.folder) if store.is_local(part.folder) else part.folder
    return store.join(folder, "methods.zip")


def write_carried(part: Part, undo: ExitStack) -> None:
    """Copy pretrained weights of the cache, and methods outside the checkout, to the job's folder.

    The methods are those of the first point: a sweep has one folder of them.
    """
    if path := _methods(part.points[0].config):
        packed = outside.archive(path)
        keep(undo, _archive(part))
        store.write(_archive(part), packed)
    configs = [point.config for point in part.points if part.verb == "train"]
    folder = store.join(part.folder, "weights")
    for name in sorted({n for config in configs for n in pretrained.from_cache(config)}):
        keep(undo, pretrained.place(folder, name))
        store.write(pretrained.place(folder, name), pretrained.read(CACHE, name))


def write_code(stage: Stage, taken: Snapshot, undo: ExitStack) -> None:
    """Write the snapshot: an archive for pods, else an unpacked folder; and its diff."""
    code = str(stage.job.code)
    diff = store.join(stage.job.folder, "code", f"{taken.name}.diff")
    for url in (code, diff):
        if not store.exists(url):
            undo.callback(store.remove, url, recursive=store.is_local(url))
    data = snapshot.archive(taken)
    if stage.cluster.scheduler == "kubernetes":
        store.write(code, data)
    else:
        snapshot.unpack(data, Path(code))
    if taken.diff:
        store.write(diff, taken.recorded)


def forget_pods(stage: Stage, undo: ExitStack) -> None:
    """Remove the state files of an earlier submission's pods."""
    logs = store.join(stage.job.folder, "logs")
    for name in store.names(logs) if scheduler.pods(stage) else []:
        if name.endswith(".state"):
            keep(undo, store.join(logs, name))
            store.remove(store.join(logs, name))


def announce_runs(part: Part, undo: ExitStack) -> dict[str, str]:
    """Create MLflow runs with status SCHEDULED, for a sweep under one parent; return IDs by run."""
    config = part.points[0].config
    if not part.trains or not config.tracking.enabled:
        return {}
    from pipeline.tracking import lifecycle

    try:
        uri = part.cluster.env.get("MLFLOW_TRACKING_URI")
        made = lifecycle.announce([p.config for p in part.points], part.runs, part.id, uri)
    except (ValueError, OSError) as error:
        if config.tracking.required:
            raise
        say(f"no MLflow run was created; the job will create it at its start: {error}")
        return {}

    def withdraw() -> None:
        try:
            lifecycle.withdraw(config, made, uri)
        except ValueError as error:
            say(f"the MLflow run of the refused job could not be withdrawn: {error}")

    undo.callback(withdraw)
    return {each.run: each.mlflow_run for each in made if each.run}
