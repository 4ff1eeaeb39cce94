"""What kubectl does for a job, and what became of it, in our states, with the reason."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jobs import kubernetes
from jobs.pod import INDEX, Object
from jobs.spec import Cluster, State, Status, SubmitError, call, explained, last_line

# A pod that waits for one of these waits for ever, and only its own state says so.
HOPELESS = {
    "CreateContainerConfigError": "a Secret or ConfigMap is missing",
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "cluster.image is no image name",
    "RunContainerError": "the command cannot be started",
    "CreateContainerError": "the container cannot be made",
}
HINTS = {
    r"forbidden": "you have no rights for that in this namespace: check cluster.namespace, or ask "
    "for create, get, list and delete on jobs, services and pods",
    r"namespaces? \S+ not found": "check cluster.namespace",
    r"(refused|no such host|timeout|was refused|Unable to connect)": "the cluster does not answer: "
    "check `kubectl cluster-info` and cluster.context",
    r"context .* does not exist|no context exists|context was not found": "see `kubectl config "
    "get-contexts`",
}  # fmt: skip


def kubectl(cluster: Cluster, *words: str, stdin: str | None = None) -> str:
    """kubectl's output; `SubmitError` with its own words and what to do where it fails."""
    answer = _call(cluster, *words, stdin=stdin)
    if answer.returncode:
        raise SubmitError(_reason(answer.stderr))
    return answer.stdout


def command(cluster: Cluster, *words: str) -> list[str]:
    where = ["--context", cluster.context] if cluster.context else []
    where += ["--namespace", cluster.namespace] if cluster.namespace else []
    return ["kubectl", *where, *words]


def _call(
    cluster: Cluster, *words: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    hint = "install kubectl 1.31 or newer, or submit from a machine that has it"
    return call(command(cluster, *words), stdin=stdin, hint=hint)


def submit(objects: Sequence[Object], cluster: Cluster) -> str:
    """Creates the Job or JobSet, then its Service, which it owns. Returns `KIND/NAME`.

    A finished one of the same name makes room; a live one is refused.
    """
    main = objects[-1]
    number = f"{main['kind'].lower()}/{main['metadata']['name']}"
    found = status(number, cluster)
    if found.state.live:
        raise SubmitError(f"{number} is there already: {found.line()}")
    if found.state is not State.UNKNOWN:
        _make_room(number, cluster)
    made = json.loads(
        kubectl(cluster, "create", "-o", "json", "-f", "-", stdin=kubernetes.dumped([main]))
    )
    owner = {"apiVersion": main["apiVersion"], "kind": main["kind"],
             "name": main["metadata"]["name"], "uid": made["metadata"]["uid"]}  # fmt: skip
    for other in objects[:-1]:
        owned = {**other, "metadata": {**other["metadata"], "ownerReferences": [owner]}}
        kubectl(cluster, "create", "-f", "-", stdin=kubernetes.dumped([owned]))
    return number


def _make_room(number: str, cluster: Cluster) -> None:
    kubectl(cluster, "delete", number, "--cascade=foreground", "--wait=false")
    end = time.monotonic() + 120
    while kubectl(cluster, "get", number, "-o", "name", "--ignore-not-found").strip():
        if time.monotonic() > end:
            raise SubmitError(f"the finished {number} is not gone after 120 s: look at its pods")
        time.sleep(0.5)


def ask(objects: Sequence[Object], clusters: Sequence[Cluster]) -> list[str]:
    """Lets the API server judge without keeping anything, and looks for Secrets and claims."""
    cluster = clusters[-1]
    told = judge(objects, cluster)
    wanted = {("secret", s) for c in clusters for s in (*c.secrets, *c.pull_secrets)}
    wanted |= {("persistentvolumeclaim", claim) for c in clusters for claim in c.volumes}
    for kind, name in sorted(wanted):
        answer = _call(cluster, "get", kind, name, "-o", "name")
        if answer.returncode == 0:
            told.append(f"{kind} {name} is there")
        elif "NotFound" in answer.stderr:
            raise SubmitError(f"{kind} {name} does not exist in this namespace: create it first")
        else:
            told.append(f"{kind} {name} was not verified: {_reason(answer.stderr)}")
    return told


def judge(objects: Sequence[Object], cluster: Cluster) -> list[str]:
    """What the API server says to each object without keeping it; `SubmitError` if it refuses."""
    _require_jobset(objects, cluster)
    told = []
    for made in objects:
        text = kubernetes.dumped([made])
        answer = _call(cluster, "create", "--dry-run=server", "-f", "-", stdin=text)
        name = f"{made['kind']} {made['metadata']['name']}"
        if answer.returncode and "AlreadyExists" not in answer.stderr:
            raise SubmitError(f"{name}: {_reason(answer.stderr)}")
        told.append(f"{name}: the cluster would take it")
    return told


def _require_jobset(objects: Sequence[Object], cluster: Cluster) -> None:
    if not any(made["kind"] == "JobSet" for made in objects):
        return
    known = kubectl(cluster, "api-resources", "--api-group=jobset.x-k8s.io", "-o", "name")
    if "jobsets" not in known:
        raise SubmitError(
            "JobSet is not installed in this cluster: ask its administrator, or set "
            "cluster.kind=job and submit the stages one after the other"
        )


def status(number: str, cluster: Cluster) -> Status:
    """Conditions of the Job or JobSet, then what its pods wait for."""
    kind, _, name = number.partition("/")
    text = kubectl(cluster, "get", kind, name, "-o", "json", "--ignore-not-found")
    if not text.strip():
        return Status(State.UNKNOWN, "it is not in the cluster any more; see the run's logs")
    label = "jobset.sigs.k8s.io/jobset-name" if kind == "jobset" else "batch.kubernetes.io/job-name"
    pods = json.loads(kubectl(cluster, "get", "pods", "-l", f"{label}={name}", "-o", "json"))
    found = judged(json.loads(text), pods["items"])
    if found.state is State.QUEUED and cluster.queue:
        answer = _call(cluster, "get", "workloads.kueue.x-k8s.io", "-o", "json")
        if answer.returncode == 0:
            waiting = queued(json.loads(answer.stdout)["items"], name)
            return Status(State.QUEUED, waiting or found.reason, found.restarts)
    return found


def judged(job: Object, pods: Sequence[Object]) -> Status:
    """State of a Job or JobSet from its object and its pods."""
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", [])
                  if c["status"] == "True"}  # fmt: skip
    ended = [p for p in pods if p["status"].get("phase") == "Failed"]
    again = Counter(p["metadata"].get("annotations", {}).get(INDEX, "") for p in ended)
    restarts = max(again.values(), default=0) + job.get("status", {}).get("restarts", 0)
    if job["metadata"].get("deletionTimestamp"):
        return Status(State.CANCELLED, "being deleted", restarts)
    if {"Complete", "Completed", "SuccessCriteriaMet"} & set(conditions):
        return Status(State.SUCCEEDED, "", restarts)
    for name in ("Failed", "FailureTarget"):
        if name in conditions:
            why = conditions[name].get("reason", "")
            told = [_ending(p) for p in sorted(ended, key=_finished)]
            reason = "; ".join(filter(None, [why, *told[-1:]]))
            return Status(State.FAILED, reason, max(0, restarts - 1))
    waits = [reason for pod in pods if (reason := _waiting(pod))]
    running = [p for p in pods if p["status"].get("phase") == "Running" and not _waiting(p)]
    if running and not waits:
        nodes = sorted({p["spec"].get("nodeName", "?") for p in running})
        return Status(State.RUNNING, f"on {','.join(nodes)}", restarts)
    if "Suspended" in conditions:
        return Status(State.QUEUED, conditions["Suspended"].get("message", "suspended"), restarts)
    return Status(State.QUEUED, waits[0] if waits else "its pods are being made", restarts)


def queued(workloads: Sequence[Object], name: str) -> str:
    """Why Kueue holds the job back: the message of the first condition that is not met."""
    for workload in workloads:
        owners = [o.get("name") for o in workload["metadata"].get("ownerReferences", [])]
        if name not in owners:
            continue
        for condition in workload.get("status", {}).get("conditions", []):
            unmet = condition["type"] in ("QuotaReserved", "Admitted", "PodsReady")
            if condition["status"] == "False" and unmet or condition["type"] == "Evicted":
                return f"Kueue: {condition.get('message') or condition.get('reason', '')}"
    return ""


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


def logs(number: str, cluster: Cluster, follow: bool) -> list[str]:
    """The command that shows every pod's log, each line with its pod."""
    kind, _, name = number.partition("/")
    label = "jobset.sigs.k8s.io/jobset-name" if kind == "jobset" else "batch.kubernetes.io/job-name"
    words = ["logs", "-l", f"{label}={name}", "-c", "main", "--prefix", "--tail=-1",
             "--max-log-requests=512", *(["-f"] if follow else [])]  # fmt: skip
    return command(cluster, *words)


def cancel(number: str, cluster: Cluster) -> None:
    """Deletes it; its pods get SIGTERM and their grace period to save."""
    kind, _, name = number.partition("/")
    kubectl(cluster, "delete", kind, name, "--cascade=foreground", "--wait=false")


def _reason(stderr: str) -> str:
    lines = [
        line for line in stderr.strip().splitlines() if not line.startswith(("E0", "W0", "I0"))
    ]
    told = re.sub(
        r"^(error|Error from server \(\w+\)|Error from server): ?", "", last_line("\n".join(lines))
    )
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, told, re.I)]
    return f"kubectl: {told}" + (f" ({hints[0]})" if hints else "")
