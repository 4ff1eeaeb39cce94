"""What a refused submission leaves: the files that were there as they were, and none of its own.

Each function registers what `undo` does when it unwinds; none removes what it did not write.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import scheduler, snapshot
from jobs.scheduler import Stage
from jobs.spec import SubmitError
from pipeline.common.console import say
from pipeline.common.environment import CHECKOUT
from pipeline.common.locks import Held, Taken, hold, leased, sign
from pipeline.config.schema import CACHE
from pipeline.runs.folder import SUBMITTING
from pipeline.runs.identity import folder_of, resolve_auto
from pipeline.runs.run_json import read_run_json
from pipeline.submission.plan import Part
from pipeline.training import pretrained
from shards import store


def keep(undo: ExitStack, url: str) -> None:
    """The file is again what it is now, or again not there."""
    try:
        undo.callback(store.write, url, store.read(url))
    except (FileNotFoundError, NotADirectoryError):
        undo.callback(store.remove, url)


def keep_place(undo: ExitStack, place: str, names: Sequence[str]) -> None:
    """Of a job's or run's folder: these files, run.json, notes of jobs that are none, folders."""
    logs, blank = store.join(place, "logs"), not store.exists(store.join(place, "run.json"))
    undo.callback(_drop_empty, place)
    undo.callback(_drop_notes, logs, set(store.names(logs)))
    if blank:
        undo.callback(_drop_blank, place)
    for name in names:
        keep(undo, store.join(place, name))


def keep_code(undo: ExitStack, url: str) -> None:
    """An unpacked commit, or its archive, goes unless it was there: its name tells what it is."""
    if not store.exists(url):
        undo.callback(store.remove, url, recursive=store.is_local(url))


def _drop_blank(place: str) -> None:
    """A run.json in which nothing is left once the MLflow run was taken back."""
    if not read_run_json(place):
        store.remove(store.join(place, "run.json"))
        store.remove(store.join(place, ".run.json.lock"))


def _drop_notes(logs: str, before: set[str]) -> None:
    for name in store.names(logs):
        if name.startswith("state-") and name not in before:
            store.remove(store.join(logs, name))


def _drop_empty(place: str) -> None:
    for name in ("logs", "code", "weights") if store.is_local(place) else ():
        with suppress(OSError):
            os.rmdir(store.local(place) / name)


@contextmanager
def held_for_submission(place: str) -> Iterator[None]:
    """Hold a job's folder or URL while it is submitted. `SubmitError` where another does.

    A folder in which nothing is left then is removed.
    """
    if not store.is_local(place):
        try:
            with leased(store.join(place, ".submit"), work="submitted"):
                yield
        except Taken as error:
            raise _taken(place, error.owner) from None
        return
    path = store.local(place).absolute() / SUBMITTING
    try:
        handle = hold(path)
    except Held as error:
        raise _taken(place, error.owner) from None
    except OSError as error:
        raise SubmitError(
            f"{place} cannot be written ({error.strerror}): name another folder"
        ) from None
    try:
        sign(handle)
        yield
    finally:
        path.unlink(missing_ok=True)
        handle.close()
        with suppress(OSError):
            path.parent.rmdir()


def _taken(place: str, owner: str) -> SubmitError:
    return SubmitError(
        f"{store.display(place)} is being submitted by {owner}: wait, then look at `status`"
    )


def write_configs(part: Part, mlflow_runs: dict[str, str]) -> None:
    from pipeline.runs.run_json import update_run_json

    points = [replace(p, config=_with_weights(part, p.config)) for p in part.points]
    if not part.trains:
        text = points[0].yaml()
        store.write(store.join(part.folder, "config.yaml"), text.encode())
        return
    for point, run in zip(points, part.runs):
        config = resolve_auto(
            point.config, folder_of(point.config)
        )  # bits depend on what `auto` meant
        named = replace(point, config=replace(config, run=run))
        store.write(store.join(run, "config.yaml"), named.yaml().encode())
        if run in mlflow_runs:
            update_run_json(run, mlflow_run_id=mlflow_runs[run])


def _with_weights(part: Part, config: Any) -> Any:
    """What is still to come from a cache comes with the job: that of a pod is empty."""
    if part.verb != "train" or not pretrained.from_cache(config):
        return config
    return replace(config, weights=store.join(part.folder, "weights"))


def write_weights(part: Part, undo: ExitStack) -> None:
    found: set[tuple[str, str]] = set()
    for config in (point.config for point in part.points if part.verb == "train"):
        found |= {(_with_weights(part, config).weights, n) for n in pretrained.from_cache(config)}
    for place, name in sorted(found):
        keep(undo, pretrained.place(place, name))
        store.write(pretrained.place(place, name), pretrained.read(CACHE, name))


def write_code(part: Part, stage: Stage, undo: ExitStack) -> None:
    if stage.job.code is None:
        return
    diff = store.join(stage.job.folder, "code", f"{stage.job.commit}.diff")
    for url in (stage.job.code, diff):
        keep_code(undo, url)
    taken = snapshot.take(CHECKOUT, part.cluster.allow_dirty)
    if taken.name != stage.job.commit:
        raise SubmitError(f"{CHECKOUT} was changed while it was submitted: submit again")
    data = snapshot.archive(taken)
    if part.cluster.scheduler == "kubernetes":
        store.write(stage.job.code, data)
    else:
        snapshot.unpack(data, Path(stage.job.code))
    if taken.diff:
        store.write(diff, taken.recorded)


def forget_pods(stage: Stage, undo: ExitStack) -> None:
    """The last words of an earlier submission's pods are not this one's."""
    logs = store.join(stage.job.folder, "logs")
    for name in store.names(logs) if scheduler.pods(stage) else []:
        if name.endswith(".state"):
            keep(undo, store.join(logs, name))
            store.remove(store.join(logs, name))


def announce(part: Part, undo: ExitStack) -> dict[str, str]:
    """MLflow runs with status SCHEDULED, the points of a sweep under one parent: ids by run."""
    config = part.points[0].config
    if not part.trains or not config.tracking.enabled:
        return {}
    from pipeline.tracking.lifecycle import announce

    try:
        uri = part.cluster.env.get("MLFLOW_TRACKING_URI")
        made = announce([p.config for p in part.points], part.runs, part.id, uri)
    except (ValueError, OSError) as error:
        if config.tracking.required:
            raise
        say(f"no MLflow run was made, it will be when the job starts: {error}")
        return {}
    undo.callback(withdraw, config, made, uri)
    return {each.run: each.mlflow_run for each in made if each.run}


def withdraw(config: Any, made: Any, uri: str | None) -> None:
    from pipeline.tracking.lifecycle import withdraw

    try:
        withdraw(config, made, uri)
    except ValueError as error:
        say(f"its MLflow run could not be taken back: {error}")
