"""Determine the state of a Job or JobSet, and the reason, from its object and pods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.cause import follows
from jobs.pod import INDEX, Object
from jobs.program import last_line
from jobs.spec import JobState, Status, explained, numbers

KILLED = (135, 137, 139)  # SIGBUS, SIGKILL, SIGSEGV
# Waiting reasons that do not end by themselves; only the pod's own state shows them.
BLOCKED = {
    "CreateContainerConfigError": "a Secret or ConfigMap is missing",
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "cluster.image is not a valid image name",
    "RunContainerError": "the command cannot be started",
    "CreateContainerError": "the container cannot be created",
}

ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"

# Conditions of a Kueue Workload that holds its job back. When the job is admitted again, Evicted
# stays in the list as False.
HELD = {"QuotaReserved": "False", "Admitted": "False", "Evicted": "True"}


def judged(job: Object, pods: Sequence[Object]) -> Status:
    """Return the state of a Job or JobSet, for an array with the state of each element."""
    return replace(_judged(job, pods), elements=_elements(job, pods))


def _elements(job: Object, pods: Sequence[Object]) -> dict[str, JobState]:
    """Return the states of an array's elements; only in an array can one element fail alone."""
    spec, status = job.get("spec", {}), job.get("status", {})
    if spec.get("completions", 1) == 1 or "maxFailedIndexes" in spec:
        return {}
    running = {_place(p)[1] for p in pods if p["status"].get("phase") == "Running"}
    known = dict.fromkeys(running, JobState.RUNNING)
    known |= dict.fromkeys(numbers(status.get("completedIndexes", "")), JobState.SUCCEEDED)
    known |= dict.fromkeys(numbers(status.get("failedIndexes", "")), JobState.FAILED)
    return {str(i): known.get(str(i), JobState.QUEUED) for i in range(spec["completions"])}


def _judged(job: Object, pods: Sequence[Object]) -> Status:
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", [])
                  if c["status"] == "True"}  # fmt: skip
    attempts = job.get("status", {}).get("restarts", 0)  # of a whole JobSet
    pods = [p for p in pods if _attempt(p) in (None, str(attempts))]
    ended = [p for p in pods if p["status"].get("phase") == "Failed"]
    failures = Counter(_place(p) for p in ended)
    restarts = max(failures.values(), default=0) + attempts
    if {"Complete", "Completed", "SuccessCriteriaMet"} & set(conditions):
        return Status(JobState.SUCCEEDED, "", restarts)
    for name in ("Failed", "FailureTarget"):
        if name in conditions:
            why = conditions[name].get("reason", "")
            last = {_place(p): p for p in sorted(ended, key=_finished)}
            causes = [_ending(p) for p in sorted(last.values(), key=_blame)]
            reason = "; ".join(filter(None, [why, *causes[:1]]))
            return Status(JobState.FAILED, reason, restarts - bool(ended))
    if job["metadata"].get("deletionTimestamp"):  # a finished Job is deleted after its TTL, above
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
    if any(p["status"].get("phase") == "Succeeded" for p in pods):  # not yet in conditions
        return Status(JobState.RUNNING, "the last pods have ended", restarts)
    return Status(JobState.QUEUED, "the pods are being created", restarts)


def queued(workloads: Sequence[Object], name: str) -> str:
    """Return why Kueue holds the job back: the message of the first unmet condition."""
    for workload in workloads:
        owners = [o.get("name") for o in workload["metadata"].get("ownerReferences", [])]
        if name not in owners:
            continue
        for condition in workload.get("status", {}).get("conditions", []):
            if condition["status"] == HELD.get(condition["type"]):
                return f"Kueue: {condition.get('message') or condition.get('reason', '')}"
    return ""


def refused(events: Sequence[Object], name: str) -> str:
    """Return why the pods of a Job or JobSet are refused: a quota, a policy, a missing account.

    Only events show it; the objects have no condition for it.
    """
    own = [
        e for e in events
        if f"{e.get('involvedObject', {}).get('name', '')}-".startswith(f"{name}-")
    ]  # fmt: skip
    if not own:
        return ""
    last = max(own, key=lambda e: str(e.get("lastTimestamp") or ""))
    return f"pods are refused: {' '.join(last.get('message', '').split())}"


def _waiting(pod: Object) -> str:
    """Return what the pod waits for; empty if it does not wait."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in BLOCKED:
            detail = ": ".join(filter(None, [reason, waiting.get("message", "")]))
            return f"{pod['metadata']['name']}: {BLOCKED[reason]} ({detail})"
        if reason:
            return f"{pod['metadata']['name']}: {reason}"
    if status.get("phase") == "Pending":
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{pod['metadata']['name']}: {condition.get('message', 'not scheduled')}"
        return f"{pod['metadata']['name']}: pending"
    return ""


def _ended(pod: Object) -> dict[str, Any]:
    """Return the termination record of the pod's container; empty if there is none."""
    for container in pod["status"].get("containerStatuses", []):
        if done := container.get("state", {}).get("terminated"):
            return dict(done)
    return {}


def _place(pod: Object) -> tuple[str, str]:
    """Return the pod's Job and its index there, which its replacements share."""
    meta = pod["metadata"]
    return (meta.get("labels", {}).get("batch.kubernetes.io/job-name", ""),
            meta.get("annotations", {}).get(INDEX, ""))  # fmt: skip


def _attempt(pod: Object) -> str | None:
    """Return the JobSet's restart attempt that the pod belongs to; None outside a JobSet."""
    marks: dict[str, str] = pod["metadata"].get("labels", {})
    return marks.get(ATTEMPT)


def _blame(pod: Object) -> tuple[int, str]:
    """Return a sort key, likeliest cause first: killed pods, then pods with an error of their own,
    then pods that lost a peer, then pods that the Job controller stopped."""
    done = _ended(pod)
    killed = done.get("reason") == "OOMKilled" or int(done.get("exitCode", 1)) in KILLED
    if pod["metadata"].get("deletionTimestamp"):
        return 3, _finished(pod)
    message = last_line(done.get("message", ""))
    return (0 if killed else 1 + follows(message)), _finished(pod)


def _finished(pod: Object) -> str:
    return str(_ended(pod).get("finishedAt", ""))


def _ending(pod: Object) -> str:
    done = _ended(pod)
    if not done:
        return f"{pod['metadata']['name']}: {pod['status'].get('reason', 'failed')}"
    how = "out of memory: raise cluster.memory_gb" if done.get("reason") == "OOMKilled" else ""
    message = last_line(done["message"]) if done.get("message", "").strip() else ""
    parts = [how or explained(int(done.get("exitCode", 1))), message]
    return f"{pod['metadata']['name']}: {', '.join(filter(None, parts))}"


def judged_stage(jobset: Object, pods: Sequence[Object], stage: str) -> Status:
    """Return the state of one stage of a chain, from the JobSet and the stage's pods."""
    whole = judged(jobset, pods)
    parts = {p["name"]: p["replicas"] for p in jobset["spec"]["replicatedJobs"]}
    own = [name for name in parts if re.fullmatch(rf"{stage}(-\d+)?", name)]
    counts = {s["name"]: s for s in jobset.get("status", {}).get("replicatedJobsStatus", [])}
    if own and all(counts.get(name, {}).get("succeeded", 0) >= parts[name] for name in own):
        return Status(JobState.SUCCEEDED, "", whole.restarts)
    failed = [name for name in parts if counts.get(name, {}).get("failed")]
    if whole.state is JobState.FAILED and not (pods or {*failed} & {*own}):
        first = failed[0] if failed else "a stage"
        return Status(JobState.CANCELLED, f"the previous {first} failed", whole.restarts)
    if whole.state is JobState.QUEUED and not pods and own[:1] != [*parts][:1]:
        return Status(JobState.QUEUED, "waits for the previous stage", whole.restarts)
    return whole
