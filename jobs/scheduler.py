"""One interface to SLURM, Kubernetes and this machine: render, check, submit, status, cancel."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jobs import kubectl, kubernetes, local, lookup, slurm, slurm_script, slurm_status
from jobs.pod import Object
from jobs.spec import Cluster, Job, Status, SubmissionUnconfirmed, SubmitError


class Stage(NamedTuple):
    """A job and its cluster; in a chain each stage waits for the previous one."""

    job: Job
    cluster: Cluster


@dataclass(frozen=True)
class Rendered:
    """A submission in the form its scheduler takes: a script per stage, or one manifest.

    In a script, the dependency on the previous stage holds a placeholder until that has an ID.
    """

    stages: tuple[Stage, ...]
    scripts: tuple[str, ...] = ()
    objects: tuple[Object, ...] = ()

    @property
    def scheduler(self) -> str:
        return self.stages[0].cluster.scheduler

    @property
    def text(self) -> str:
        return kubernetes.dumped(self.objects) if self.objects else "\n".join(self.scripts)


def render(stages: Sequence[Stage]) -> Rendered:
    """Render each stage once. Raises `SubmitError` for an invalid job."""
    kinds = {stage.cluster.scheduler for stage in stages}
    if len(kinds) > 1:
        raise SubmitError(
            f"a chain runs on one scheduler, not on {' and '.join(sorted(kinds))}: set cluster= in "
            "its first command, which holds for the following ones"
        )
    if kinds == {"kubernetes"}:
        jobs, clusters = zip(*stages)
        one = len(stages) == 1
        made = kubernetes.manifest(*stages[0]) if one else kubernetes.chain(jobs, clusters)
        return Rendered(tuple(stages), objects=tuple(made))
    renderer = local if kinds == {"local"} else slurm_script
    scripts = []
    for index, (job, cluster) in enumerate(stages):
        if index:
            job = replace(job, after=(renderer.placeholder(stages[index - 1].job),))
        scripts.append(renderer.render(job, cluster))
    return Rendered(tuple(stages), scripts=tuple(scripts))


def ask(rendered: Rendered) -> list[str]:
    """Return the scheduler's answers without submitting. Raises `SubmitError` on refusal."""
    if rendered.objects:
        return kubectl.ask(rendered.objects, [stage.cluster for stage in rendered.stages])
    backend = local if rendered.scheduler == "local" else slurm
    pairs = zip(rendered.stages, rendered.scripts)
    return [line for stage, script in pairs for line in backend.ask(*stage, script)]


def judge(rendered: Rendered) -> None:
    """Raise `SubmitError` if the scheduler would refuse the submission; creates nothing."""
    if rendered.objects:
        kubectl.judge(rendered.objects, rendered.stages[-1].cluster)
    elif rendered.scheduler == "slurm":
        for script in rendered.scripts:
            slurm.judge(script)


def submit(rendered: Rendered, before: Sequence[Sequence[str]] = ()) -> list[str]:
    """Submit in order and return the ID of each stage; a refusal cancels the earlier stages.

    before: IDs of earlier submissions of each stage. Call `judge` first: it refuses more, before
    anything is written. Raises `SubmissionUnconfirmed` for a job that may have been accepted.
    """
    stages = rendered.stages
    if rendered.objects:
        kubectl.submit(rendered.objects, stages[-1].cluster)
        return _object_ids(rendered)
    renderer = local if rendered.scheduler == "local" else slurm_script
    numbers: list[str] = []
    for index, (stage, script) in enumerate(zip(stages, rendered.scripts)):
        try:
            if index:
                script = renderer.with_dependency(script, stages[index - 1].job, numbers[-1])
            known = before[index] if before else ()
            numbers.append(_submit_script(stage, script, known))
        except BaseException:
            for number, earlier in zip(numbers, stages):
                with contextlib.suppress(SubmitError):
                    cancel(number, earlier.cluster, earlier.job.run)
            raise
    return numbers


def _submit_script(stage: Stage, script: str, before: Sequence[str]) -> str:
    """Submit one script and return its ID; look the job up by name if the answer was lost."""
    job, cluster = stage
    try:
        if cluster.scheduler == "local":
            return local.submit(job, script)
        return slurm.submit(job, cluster, script)
    except SubmissionUnconfirmed as error:
        try:
            number = find(_search_key(stage), job.folder, before, cluster)
        except SubmitError as failure:
            number, outcome = "", f"and the queue cannot be queried ({failure})"
        else:
            outcome = "and no job of that name is queued yet"
        if not number:
            raise SubmissionUnconfirmed(
                f"{error}: {job.id} may have been accepted, {outcome}; its record is kept: run "
                f"`status {job.id}` before you submit it again"
            ) from None
        slurm.keep_notes(job, number)
        return number


def search_keys(rendered: Rendered) -> list[tuple[str, ...]]:
    """Return for each stage what `find` needs to look it up without its ID."""
    if rendered.objects:
        return [(number, rendered.stages[-1].job.run) for number in _object_ids(rendered)]
    return [_search_key(stage) for stage in rendered.stages]


def _search_key(stage: Stage) -> tuple[str]:
    return (stage.cluster.name or stage.job.id,)


def find(key: Sequence[str], folder: str, before: Sequence[str], cluster: Cluster) -> str:
    """Return the ID of a job by its search key; empty if the scheduler has none."""
    return lookup.find(key, folder, before, cluster)


def pods(stage: Stage) -> tuple[str, ...]:
    """Return the names of a job's log and state files in a bucket; empty unless on Kubernetes."""
    kubernetes_job = stage.cluster.scheduler == "kubernetes"
    return tuple(kubernetes.parts(*stage)) if kubernetes_job else ()


def located(cluster: Cluster) -> Cluster:
    """Fill in the current kubectl context and namespace, to find the job after they change."""
    return kubectl.located(cluster) if cluster.scheduler == "kubernetes" else cluster


def status(number: str, folder: str, cluster: Cluster, run: str) -> Status:
    """Return the state of a submitted job; `run` detects another job of the same name."""
    if cluster.scheduler == "kubernetes":
        return kubectl.status(number, cluster, run)
    status_of = local.status if cluster.scheduler == "local" else slurm_status.status
    return status_of(number, folder)


def cancel(number: str, cluster: Cluster, run: str) -> None:
    """Ask a job to save and exit; it is not restarted."""
    if cluster.scheduler == "kubernetes":
        kubectl.cancel(number, cluster, run)
    elif cluster.scheduler == "local":
        local.cancel(number)
    else:
        slurm.cancel(number)


def _object_ids(rendered: Rendered) -> list[str]:
    """Return the ID of each stage on Kubernetes: `KIND/NAME`, in a chain with `#STAGE`."""
    number = kubectl.number_of(rendered.objects)
    if len(rendered.stages) == 1:
        return [number]
    return [f"{number}#{n}" for n in kubernetes.stages([s.job for s in rendered.stages])]
