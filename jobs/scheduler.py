"""The same questions to every scheduler: what would run, would you take it, take it, how is it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from jobs import kubectl, kubernetes, local, lookup, slurm, slurm_status
from jobs.pod import Object
from jobs.spec import Cluster, Job, Status, SubmitError, Unheard


class Stage(NamedTuple):
    """A job and where it runs; in a chain each waits for the one before."""

    job: Job
    cluster: Cluster


def render(stages: Sequence[Stage]) -> str:
    """The exact script or manifest. Stages of a chain name those before them instead of ids."""
    if _scheduler(stages) == "kubernetes":
        return kubernetes.dumped(_objects(stages))
    texts = []
    for place, (job, cluster) in enumerate(stages):
        if place:
            before = stages[place - 1].job
            told = f"{before.folder}/logs/state-PID" if cluster.scheduler == "local" else before.id
            job = replace(job, after=(told,))
        render_one = local.render if cluster.scheduler == "local" else slurm.render
        texts.append(render_one(job, cluster))
    return "\n".join(texts)


def ask(stages: Sequence[Stage]) -> list[str]:
    """What the scheduler says to it, without submitting. Raises `SubmitError` where it refuses."""
    scheduler = _scheduler(stages)
    if scheduler == "kubernetes":
        return kubectl.ask(_objects(stages), [s.cluster for s in stages])
    ask_one = local.ask if scheduler == "local" else slurm.ask
    return [line for stage in stages for line in ask_one(*stage)]


def judge(stages: Sequence[Stage]) -> None:
    """Raises `SubmitError` for what the scheduler would refuse; nothing is kept."""
    scheduler = _scheduler(stages)
    if scheduler == "kubernetes":
        kubectl.judge(_objects(stages), stages[-1].cluster)
    elif scheduler == "slurm":
        for stage in stages:
            slurm.judge(*stage)


def submit(stages: Sequence[Stage], before: Sequence[Sequence[str]] = ()) -> list[str]:
    """Submits in order; the id of each. What was submitted before a refusal is undone.

    before: ids of earlier submissions of each stage. `judge` comes first: it refuses more, and
    before anything is written. Raises `Unheard` where a job may have been taken that is not found.
    """
    scheduler = _scheduler(stages)
    if scheduler == "kubernetes":
        kubectl.submit(_objects(stages), stages[-1].cluster)
        return _numbers(stages)
    numbers: list[str] = []
    for place, (job, cluster) in enumerate(stages):
        try:
            after = tuple(numbers[-1:])
            if scheduler == "local":
                after = tuple(local.dependency(n, stages[place - 1].job.folder) for n in after)
            known = before[place] if before else ()
            numbers.append(_handed(Stage(replace(job, after=after), cluster), known))
        except BaseException:
            for number, stage in zip(numbers, stages):
                with contextlib.suppress(SubmitError):
                    cancel(number, stage.cluster, stage.job.run)
            raise
    return numbers


def _handed(stage: Stage, before: Sequence[str]) -> str:
    """The id under which the scheduler took it; asked for by its name where no answer came."""
    try:
        return (local if stage.cluster.scheduler == "local" else slurm).submit(*stage)
    except Unheard as error:
        try:
            number = find(sought([stage])[0], stage.job.folder, before, stage.cluster)
        except SubmitError as again:
            number, seen = "", f"and whether it is queued cannot be asked ({again})"
        else:
            seen = "and no job of that name is queued yet"
        if not number:
            raise Unheard(
                f"{error}: {stage.job.id} may have been taken, {seen}; its record is kept, see "
                f"`status {stage.job.id}` before you submit it again"
            ) from None
        slurm.keep_notes(stage.job, number)
        return number


def sought(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """What `find` knows each by while its number was not heard."""
    if _scheduler(stages) == "kubernetes":
        return [(number, stages[-1].job.run) for number in _numbers(stages)]
    return [(cluster.name or job.id,) for job, cluster in stages]


def find(sought: Sequence[str], folder: str, before: Sequence[str], cluster: Cluster) -> str:
    """The id of a job whose answer was lost; empty where the scheduler knows of none."""
    return lookup.find(sought, folder, before, cluster)


def pods(stage: Stage) -> tuple[str, ...]:
    """Names under which its pods leave logs and last words; none where the scheduler keeps both."""
    known = stage.cluster.scheduler == "kubernetes"
    return tuple(kubernetes.parts(*stage)) if known else ()


def located(cluster: Cluster) -> Cluster:
    """With what it leaves to the surroundings of today, so that its jobs are found tomorrow."""
    return kubectl.located(cluster) if cluster.scheduler == "kubernetes" else cluster


def status(number: str, folder: str, cluster: Cluster, run: str) -> Status:
    """How a submitted job is. run: what it makes, for a name may be another's by now."""
    if cluster.scheduler == "kubernetes":
        return kubectl.status(number, cluster, run)
    status_of = local.status if cluster.scheduler == "local" else slurm_status.status
    return status_of(number, folder)


def cancel(number: str, cluster: Cluster, run: str) -> None:
    """Asks it to save and leave, for good."""
    if cluster.scheduler == "kubernetes":
        kubectl.cancel(number, cluster, run)
    elif cluster.scheduler == "local":
        local.cancel(number)
    else:
        slurm.cancel(number)


def _scheduler(stages: Sequence[Stage]) -> str:
    kinds = {s.cluster.scheduler for s in stages}
    if len(kinds) > 1:
        raise SubmitError(
            f"a chain runs on one scheduler, not on {' and '.join(sorted(kinds))}: say cluster= of "
            "its first verb, which holds for those after it"
        )
    return kinds.pop()


def _numbers(stages: Sequence[Stage]) -> list[str]:
    """Of Kubernetes, where they are names."""
    number = kubectl.number_of(_objects(stages))
    if len(stages) == 1:
        return [number]
    return [f"{number}#{name}" for name in kubernetes.stages([s.job for s in stages])]


def _objects(stages: Sequence[Stage]) -> list[Object]:
    if len(stages) == 1:
        return kubernetes.manifest(*stages[0])
    return kubernetes.chain([s.job for s in stages], [s.cluster for s in stages])
