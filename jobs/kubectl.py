"""Check, submit, follow and delete a job with kubectl."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace

from jobs import kubernetes
from jobs.kube_status import judged, judged_stage, queued, refused
from jobs.pod import Object
from jobs.program import call, last_line
from jobs.spec import Cluster, JobState, Status, SubmitError
from jobs.watching import watched

HINTS = {
    r"forbidden": "missing permission in this namespace: check cluster.namespace, or ask "
    "for create, get, list and delete on jobs (and jobsets), services and pods",
    r"namespaces? \S+ not found": "check cluster.namespace",
    r"(refused|no such host|timeout|was refused|Unable to connect)": "the cluster does not answer: "
    "check `kubectl cluster-info` and cluster.context",
    r"context .* does not exist|no context exists|context was not found": "see `kubectl config "
    "get-contexts`",
}  # fmt: skip
GONE = "the job is no longer in the cluster"


def kubectl(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    """Return kubectl's output. Raises `SubmitError` with its message and a hint."""
    answer = _call(cluster, *arguments, stdin=stdin)
    if answer.returncode:
        raise SubmitError(_reason(answer.stderr))
    return answer.stdout


def command(cluster: Cluster, *arguments: str) -> list[str]:
    where = ["--context", cluster.context] if cluster.context else []
    where += ["--namespace", cluster.namespace] if cluster.namespace else []
    return ["kubectl", *where, *arguments]


def _call(
    cluster: Cluster, *arguments: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    hint = "install kubectl 1.31 or newer, or submit from a machine that has it"
    return call(command(cluster, *arguments), stdin=stdin, hint=hint, detached=stdin is not None)


def submit(objects: Sequence[Object], cluster: Cluster) -> str:
    """Create the Job or JobSet, then the Service that it owns. Return `KIND/NAME`.

    A finished Job of the same run is deleted first (so call `judge` before); a live one, or one of
    another run, is refused. If the API server refuses an object, all are deleted.
    """
    main, number = objects[-1], number_of(objects)
    if existing := _get(number, cluster):
        if owner := _other_run(existing, "", main["metadata"]["annotations"][kubernetes.RUN]):
            raise SubmitError(f"{number} exists and belongs to {owner}: set another cluster.name=")
        current = status(number, cluster)
        if current.state.live:
            raise SubmitError(
                f"{number} exists and is live ({current.line()}): cancel it, or set cluster.name="
            )
        _make_room(number, cluster)
    made = json.loads(
        kubectl(cluster, "create", "-o", "json", "-f", "-", stdin=kubernetes.dumped([main]))
    )
    reference = {"apiVersion": main["apiVersion"], "kind": main["kind"],
             "name": main["metadata"]["name"], "uid": made["metadata"]["uid"]}  # fmt: skip
    try:
        for other in objects[:-1]:
            owned = {**other, "metadata": {**other["metadata"], "ownerReferences": [reference]}}
            kubectl(cluster, "create", "-f", "-", stdin=kubernetes.dumped([owned]))
    except SubmitError:
        with contextlib.suppress(SubmitError):
            cancel(number, cluster)
        raise
    return number


def number_of(objects: Sequence[Object]) -> str:
    """Return `KIND/NAME` of the Job or JobSet, which is known before it exists."""
    return f"{objects[-1]['kind'].lower()}/{objects[-1]['metadata']['name']}"


def _other_run(job: Object, stage: str, run: str) -> str:
    """Return the run that the Job, JobSet or stage belongs to; empty if it is `run`."""
    parts = job.get("spec", {}).get("replicatedJobs", []) if stage else []
    templates = [p["template"] for p in parts if re.fullmatch(rf"{stage}(-\d+)?", p["name"])]
    marks = (templates or [job])[0].get("metadata", {}).get("annotations", {})
    return "" if marks.get(kubernetes.RUN) == run else marks.get(kubernetes.RUN, "another user")


def located(cluster: Cluster) -> Cluster:
    """Fill in kubectl's current context and namespace, which may change later.

    A pod has no kubeconfig and sees one cluster only.
    """
    answer = _call(cluster, "config", "view", "--minify", "-o", "json")
    if answer.returncode:
        return cluster
    view = json.loads(answer.stdout)
    here = view["contexts"][0]["context"].get("namespace", "default")
    return replace(
        cluster,
        context=cluster.context or view["current-context"],
        namespace=cluster.namespace or here,
    )


def _make_room(number: str, cluster: Cluster) -> None:
    kubectl(cluster, "delete", number, "--cascade=foreground", "--wait=false")
    end = time.monotonic() + 120
    while _get(number, cluster):
        if time.monotonic() > end:
            raise SubmitError(f"the finished {number} was not deleted in 120 s: check its pods")
        time.sleep(0.5)


def ask(objects: Sequence[Object], clusters: Sequence[Cluster]) -> list[str]:
    """Check the objects with the API server, and that the Secrets and claims exist."""
    cluster = clusters[-1]
    lines = judge(objects, cluster)
    wanted = {("secret", s) for c in clusters for s in (*c.secrets, *c.pull_secrets)}
    wanted |= {("persistentvolumeclaim", claim) for c in clusters for claim in c.volumes}
    for kind, name in sorted(wanted):
        answer = _call(cluster, "get", kind, name, "-o", "name")
        if answer.returncode == 0:
            lines.append(f"{kind} {name} exists")
        elif "NotFound" in answer.stderr:
            raise SubmitError(f"{kind} {name} does not exist in this namespace: create it first")
        else:
            lines.append(f"{kind} {name} not verified: {_reason(answer.stderr)}")
    return lines


def judge(objects: Sequence[Object], cluster: Cluster) -> list[str]:
    """Check each object with the API server, creating none. Raises `SubmitError` on refusal."""
    if any(made["kind"] == "JobSet" for made in objects):
        _require_jobset(cluster)
    lines = []
    for made in objects:
        text = kubernetes.dumped([made])
        answer = _call(cluster, "create", "--dry-run=server", "-f", "-", stdin=text)
        name = f"{made['kind']} {made['metadata']['name']}"
        if answer.returncode and "AlreadyExists" not in answer.stderr:
            raise SubmitError(f"{name}: {_reason(answer.stderr)}")
        lines.append(f"{name}: the cluster would accept it")
        # If a policy will refuse the pods, the server accepts the Job with a warning.
        lines += [line for line in answer.stderr.splitlines() if line.startswith("Warning:")]
    return lines


def _require_jobset(cluster: Cluster) -> None:
    known = kubectl(cluster, "api-resources", "--api-group=jobset.x-k8s.io", "-o", "name")
    if "jobsets" not in known:
        raise SubmitError(
            "JobSet is not installed in this cluster: ask the administrator, or set "
            "cluster.kind=job and submit the stages one after the other"
        )


def status(number: str, cluster: Cluster, run: str | None = None) -> Status:
    """Return the state of a Job, JobSet or, for `jobset/NAME#STAGE`, of one stage of a chain.

    UNKNOWN if the object belongs to another run than `run`.
    """
    return _status_and_pods(number, cluster, run)[0]


def _status_and_pods(number: str, cluster: Cluster, run: str | None) -> tuple[Status, list[Object]]:
    whole, _, stage = number.partition("#")
    job = _get(whole, cluster)
    if not job:
        return Status(JobState.UNKNOWN, GONE), []
    if run is not None and (owner := _other_run(job, stage, run)):
        return Status(JobState.UNKNOWN, f"{whole} now belongs to {owner}"), []
    pods = _pods(number, cluster)
    current = judged_stage(job, pods, stage) if stage else judged(job, pods)
    held = ""
    if current.state.live and not any(
        pod["status"].get("phase") in ("Pending", "Running") for pod in pods
    ):
        held = _held(job["metadata"]["name"], stage, cluster)
    return replace(current, state=JobState.QUEUED, reason=held) if held else current, pods


def _held(name: str, stage: str, cluster: Cluster) -> str:
    """Return the reason for missing pods: Kueue's reason, or the refusal of the pods."""
    workloads = _items(cluster, "workloads.kueue.x-k8s.io") if cluster.queue else []
    events = _items(cluster, "events", "--field-selector", "reason=FailedCreate")
    return queued(workloads, name) or refused(events, f"{name}-{stage}" if stage else name)


def _items(cluster: Cluster, *arguments: str) -> list[Object]:
    """Return objects; none if the cluster lacks the kind or the user may not list it."""
    answer = _call(cluster, "get", *arguments, "-o", "json")
    return list(json.loads(answer.stdout)["items"]) if answer.returncode == 0 else []


def _get(number: str, cluster: Cluster) -> Object:
    """Return the Job or JobSet; empty if it does not exist."""
    arguments = [*number.split("/"), "-o", "json", "--ignore-not-found"]
    text = kubectl(cluster, "get", *arguments)
    return json.loads(text) if text.strip() else {}


def _pods(number: str, cluster: Cluster) -> list[Object]:
    whole, _, stage = number.partition("#")
    kind, _, name = whole.partition("/")
    label = "jobset.sigs.k8s.io/jobset-name" if kind == "jobset" else "batch.kubernetes.io/job-name"
    text = kubectl(cluster, "get", "pods", "-l", f"{label}={name}", "-o", "json")
    items: list[Object] = json.loads(text)["items"]
    part = re.compile(rf"{stage}(-\d+)?" if stage else ".*")
    named = "jobset.sigs.k8s.io/replicatedjob-name"
    return [p for p in items if part.fullmatch(p["metadata"].get("labels", {}).get(named, stage))]


def logs(number: str, cluster: Cluster, follow: bool, run: str | None = None) -> int:
    """Print each pod's log, prefixed with the pod's name; return the number of pods.

    With `follow` until the job has ended, replacement pods included.
    """
    shown: dict[str, subprocess.Popen[bytes]] = {}

    def look() -> bool:
        current, pods = _status_and_pods(number, cluster, run)
        for pod in pods:
            name = pod["metadata"]["name"]
            if name not in shown and pod["status"].get("phase") != "Pending":
                arguments = ["logs", name, "-c", "main", "--prefix", "--tail=-1"]
                shown[name] = subprocess.Popen(command(cluster, *arguments, *(["-f"] * follow)))
                if not follow:
                    shown[name].wait()
        return follow and current.state.live

    for _ in watched(look, lambda: [process.poll() for process in shown.values()]):
        pass
    for process in shown.values():
        process.wait()
    return len(shown)


def cancel(number: str, cluster: Cluster, run: str | None = None) -> None:
    """Delete the job, or the whole chain of a stage; pods get SIGTERM and time to save."""
    whole, _, stage = number.partition("#")
    job = _get(whole, cluster) if run is not None else {}
    if run is not None and job and (owner := _other_run(job, stage, run)):
        raise SubmitError(f"{whole} now belongs to {owner}: not deleted")
    kubectl(cluster, "delete", *whole.split("/"), "--cascade=foreground", "--wait=false")


def _reason(stderr: str) -> str:
    lines = [
        line for line in stderr.strip().splitlines() if not line.startswith(("E0", "W0", "I0"))
    ]
    message = re.sub(
        r"^(error|Error from server \(\w+\)|Error from server): ?", "", last_line("\n".join(lines))
    )
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, message, re.I)]
    return f"kubectl: {message}" + (f" ({hints[0]})" if hints else "")
