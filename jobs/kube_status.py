"""What became of a Job or JobSet, from its object and its pods, in our states, with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.cause import follows
from jobs.pod import INDEX, Object
from jobs.spec import JobState, Status, explained, last_line, numbers

KILLED = (135, 137, 139)  # SIGBUS, SIGKILL, SIGSEGV
# A pod that waits for one of these waits for ever, and only its own state says so.
HOPELESS = {
    "CreateContainerConfigError": "a Secret or ConfigMap is missing",
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "cluster.image is no image name",
    "RunContainerError": "the command cannot be started",
    "CreateContainerError": "the container cannot be made",
}

ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"

# Evicted stays behind as False, with what once was, when a job is admitted again.
HELD = {"QuotaReserved": "False", "Admitted": "False", "Evicted": "True"}


def judged(job: Object, pods: Sequence[Object]) -> Status:
    """State of a Job or JobSet from its object and its pods, of an array each element's too."""
    return replace(_judged(job, pods), elements=_elements(job, pods))


def _elements(job: Object, pods: Sequence[Object]) -> dict[str, JobState]:
    """By the controller's own lists; only of an array do elements fail alone."""
    spec, said = job.get("spec", {}), job.get("status", {})
    if spec.get("completions", 1) == 1 or "maxFailedIndexes" in spec:
        return {}
    running = {_place(p)[1] for p in pods if p["status"].get("phase") == "Running"}
    known = dict.fromkeys(running, JobState.RUNNING)
    known |= dict.fromkeys(numbers(said.get("completedIndexes", "")), JobState.SUCCEEDED)
    known |= dict.fromkeys(numbers(said.get("failedIndexes", "")), JobState.FAILED)
    return {str(i): known.get(str(i), JobState.QUEUED) for i in range(spec["completions"])}


def _judged(job: Object, pods: Sequence[Object]) -> Status:
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", [])
                  if c["status"] == "True"}  # fmt: skip
    attempts = job.get("status", {}).get("restarts", 0)  # of a JobSet as a whole
    pods = [p for p in pods if _attempt(p) in (None, str(attempts))]
    ended = [p for p in pods if p["status"].get("phase") == "Failed"]
    again = Counter(_place(p) for p in ended)
    restarts = max(again.values(), default=0) + attempts
    if {"Complete", "Completed", "SuccessCriteriaMet"} & set(conditions):
        return Status(JobState.SUCCEEDED, "", restarts)
    for name in ("Failed", "FailureTarget"):
        if name in conditions:
            why = conditions[name].get("reason", "")
            last = {_place(p): p for p in sorted(ended, key=_finished)}
            told = [_ending(p) for p in sorted(last.values(), key=_blame)]
            reason = "; ".join(filter(None, [why, *told[:1]]))
            return Status(JobState.FAILED, reason, restarts - bool(ended))
    if job["metadata"].get("deletionTimestamp"):  # what had ended before has only had its time
        return Status(JobState.CANCELLED, "being deleted", restarts)
    waits = [reason for pod in pods if (reason := _waiting(pod))]
    running = [p for p in pods if p["status"].get("phase") == "Running" and not _waiting(p)]
    if running and not waits:
        nodes = sorted({p["spec"].get("nodeName", "?") for p in running})
        return Status(JobState.RUNNING, f"on {','.join(nodes)}", restarts)
    if "Suspended" in conditions:
        return Status(
            JobState.QUEUED, conditions["Suspended"].get("message", "suspended"), restarts
        )
    if waits:
        return Status(JobState.QUEUED, waits[0], restarts)
    if any(p["status"].get("phase") == "Succeeded" for p in pods):  # its controller is to say so
        return Status(JobState.RUNNING, "its last pods have ended", restarts)
    return Status(JobState.QUEUED, "its pods are being made", restarts)


def queued(workloads: Sequence[Object], name: str) -> str:
    """Why Kueue holds the job back: the message of the first condition that is not met."""
    for workload in workloads:
        owners = [o.get("name") for o in workload["metadata"].get("ownerReferences", [])]
        if name not in owners:
            continue
        for condition in workload.get("status", {}).get("conditions", []):
            if condition["status"] == HELD.get(condition["type"]):
                return f"Kueue: {condition.get('message') or condition.get('reason', '')}"
    return ""


def refused(events: Sequence[Object], name: str) -> str:
    """Why no pod is made of a Job, or of a JobSet's: a quota, a policy, a missing account.

    No condition of either says so, only their events.
    """
    mine = [
        e for e in events
        if f"{e.get('involvedObject', {}).get('name', '')}-".startswith(f"{name}-")
    ]  # fmt: skip
    if not mine:
        return ""
    last = max(mine, key=lambda e: str(e.get("lastTimestamp") or ""))
    return f"its pods are refused: {' '.join(last.get('message', '').split())}"


def _waiting(pod: Object) -> str:
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in HOPELESS:
            told = waiting.get("message", "")
            return (
                f"{pod['metadata']['name']}: {HOPELESS[reason]} ({reason}{': ' * bool(told)}{told})"
            )
        if reason:
            return f"{pod['metadata']['name']}: {reason}"
    if status.get("phase") == "Pending":
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{pod['metadata']['name']}: {condition.get('message', 'not scheduled')}"
        return f"{pod['metadata']['name']}: pending"
    return ""


def _ended(pod: Object) -> dict[str, Any]:
    for container in pod["status"].get("containerStatuses", []):
        if done := container.get("state", {}).get("terminated"):
            return dict(done)
    return {}


def _place(pod: Object) -> tuple[str, str]:
    """Which of the job's pods it was, whatever its name: its Job and its number there."""
    meta = pod["metadata"]
    return (meta.get("labels", {}).get("batch.kubernetes.io/job-name", ""),
            meta.get("annotations", {}).get(INDEX, ""))  # fmt: skip


def _attempt(pod: Object) -> str | None:
    """Of a JobSet that has started all of its pods again, which start this pod belongs to."""
    marks: dict[str, str] = pod["metadata"].get("labels", {})
    return marks.get(ATTEMPT)


def _blame(pod: Object) -> tuple[int, str]:
    """What was killed comes before what said why it failed, and that before what lost its peer.

    What the Job controller itself ended is no cause.
    """
    done = _ended(pod)
    killed = done.get("reason") == "OOMKilled" or int(done.get("exitCode", 1)) in KILLED
    if pod["metadata"].get("deletionTimestamp"):
        return 3, _finished(pod)
    told = last_line(done.get("message", ""))
    return (0 if killed else 1 + follows(told)), _finished(pod)


def _finished(pod: Object) -> str:
    return str(_ended(pod).get("finishedAt", ""))


def _ending(pod: Object) -> str:
    done = _ended(pod)
    if not done:
        return f"{pod['metadata']['name']}: {pod['status'].get('reason', 'failed')}"
    how = "out of memory: raise cluster.memory_gb" if done.get("reason") == "OOMKilled" else ""
    told = last_line(done["message"]) if done.get("message", "").strip() else ""
    parts = [how or explained(int(done.get("exitCode", 1))), told]
    return f"{pod['metadata']['name']}: {', '.join(filter(None, parts))}"


def judged_stage(jobset: Object, pods: Sequence[Object], stage: str) -> Status:
    """State of one stage of a chain: the parts of the JobSet that are called so, and their pods."""
    whole = judged(jobset, pods)
    parts = {p["name"]: p["replicas"] for p in jobset["spec"]["replicatedJobs"]}
    mine = [name for name in parts if re.fullmatch(rf"{stage}(-\d+)?", name)]
    said = {s["name"]: s for s in jobset.get("status", {}).get("replicatedJobsStatus", [])}
    if mine and all(said.get(name, {}).get("succeeded", 0) >= parts[name] for name in mine):
        return Status(JobState.SUCCEEDED, "", whole.restarts)
    lost = [name for name in parts if said.get(name, {}).get("failed")]
    if whole.state is JobState.FAILED and not (pods or {*lost} & {*mine}):
        first = lost[0] if lost else "a stage"
        return Status(JobState.CANCELLED, f"{first} before it failed", whole.restarts)
    if whole.state is JobState.QUEUED and not pods and mine[:1] != [*parts][:1]:
        return Status(JobState.QUEUED, "waits for the stage before it", whole.restarts)
    return whole
