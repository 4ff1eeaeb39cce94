"""What kubectl does for a job: judge it, take it, show it, delete it."""

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
from jobs.spec import Cluster, JobState, Status, SubmitError, call, last_line
from jobs.watching import watched

HINTS = {
    r"forbidden": "you have no rights for that in this namespace: check cluster.namespace, or ask "
    "for create, get, list and delete on jobs (and jobsets), services and pods",
    r"namespaces? \S+ not found": "check cluster.namespace",
    r"(refused|no such host|timeout|was refused|Unable to connect)": "the cluster does not answer: "
    "check `kubectl cluster-info` and cluster.context",
    r"context .* does not exist|no context exists|context was not found": "see `kubectl config "
    "get-contexts`",
}  # fmt: skip
GONE = "it is not in the cluster any more"


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
    return call(command(cluster, *words), stdin=stdin, hint=hint, apart=stdin is not None)


def submit(objects: Sequence[Object], cluster: Cluster) -> str:
    """Creates the Job or JobSet, then its Service, which it owns. Returns `KIND/NAME`.

    A finished one of the same run makes room (so `judge` first); a live one, or another run's, is
    refused. Whatever the API server refuses of it, nothing of it stays.
    """
    main, number = objects[-1], number_of(objects)
    if there := _get(number, cluster):
        _refuse_others(main, there, number)
        found = status(number, cluster)
        if found.state.live:
            raise SubmitError(f"{number} is there already: {found.line()}")
        _make_room(number, cluster)
    made = json.loads(
        kubectl(cluster, "create", "-o", "json", "-f", "-", stdin=kubernetes.dumped([main]))
    )
    owner = {"apiVersion": main["apiVersion"], "kind": main["kind"],
             "name": main["metadata"]["name"], "uid": made["metadata"]["uid"]}  # fmt: skip
    try:
        for other in objects[:-1]:
            owned = {**other, "metadata": {**other["metadata"], "ownerReferences": [owner]}}
            kubectl(cluster, "create", "-f", "-", stdin=kubernetes.dumped([owned]))
    except SubmitError:
        with contextlib.suppress(SubmitError):
            cancel(number, cluster)
        raise
    return number


def number_of(objects: Sequence[Object]) -> str:
    """`KIND/NAME` of the Job or JobSet, which is known before it is there."""
    return f"{objects[-1]['kind'].lower()}/{objects[-1]['metadata']['name']}"


def _refuse_others(main: Object, there: Object, number: str) -> None:
    if whose := _stranger(there, "", main["metadata"]["annotations"][kubernetes.RUN]):
        raise SubmitError(f"{number} is there and belongs to {whose}: give cluster.name=")


def _stranger(there: Object, stage: str, run: str) -> str:
    """Whose the Job, JobSet or stage is; empty where it is of this run."""
    parts = there.get("spec", {}).get("replicatedJobs", []) if stage else []
    mine = [p["template"] for p in parts if re.fullmatch(rf"{stage}(-\d+)?", p["name"])]
    marks = (mine or [there])[0].get("metadata", {}).get("annotations", {})
    return "" if marks.get(kubernetes.RUN) == run else marks.get(kubernetes.RUN, "somebody else")


def located(cluster: Cluster) -> Cluster:
    """With the context and namespace that kubectl means now, for another may be current tomorrow.

    In a pod there is no kubeconfig, and one place only.
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
    if any(made["kind"] == "JobSet" for made in objects):
        _require_jobset(cluster)
    told = []
    for made in objects:
        text = kubernetes.dumped([made])
        answer = _call(cluster, "create", "--dry-run=server", "-f", "-", stdin=text)
        name = f"{made['kind']} {made['metadata']['name']}"
        if answer.returncode and "AlreadyExists" not in answer.stderr:
            raise SubmitError(f"{name}: {_reason(answer.stderr)}")
        told.append(f"{name}: the cluster would take it")
        # Pods that a policy will refuse are no error of the Job: the server only warns of them.
        told += [line for line in answer.stderr.splitlines() if line.startswith("Warning:")]
    return told


def _require_jobset(cluster: Cluster) -> None:
    known = kubectl(cluster, "api-resources", "--api-group=jobset.x-k8s.io", "-o", "name")
    if "jobsets" not in known:
        raise SubmitError(
            "JobSet is not installed in this cluster: ask its administrator, or set "
            "cluster.kind=job and submit the stages one after the other"
        )


def status(number: str, cluster: Cluster, run: str | None = None) -> Status:
    """Conditions of the Job or JobSet, then what its pods wait for. `jobset/NAME#STAGE`: of one
    stage of a chain. What is not of `run` is not the job that was asked for."""
    return _seen(number, cluster, run)[0]


def _seen(number: str, cluster: Cluster, run: str | None) -> tuple[Status, list[Object]]:
    """How the job is, and its pods."""
    whole, _, stage = number.partition("#")
    job = _get(whole, cluster)
    if not job:
        return Status(JobState.UNKNOWN, GONE), []
    if run is not None and (whose := _stranger(job, stage, run)):
        return Status(JobState.UNKNOWN, f"{whole} is not this job any more, but of {whose}"), []
    pods = _pods(number, cluster)
    found = judged_stage(job, pods, stage) if stage else judged(job, pods)
    held = ""
    if found.state.live and not any(
        pod["status"].get("phase") in ("Pending", "Running") for pod in pods
    ):
        held = _held(job["metadata"]["name"], stage, cluster)
    return replace(found, state=JobState.QUEUED, reason=held) if held else found, pods


def _held(name: str, stage: str, cluster: Cluster) -> str:
    """Why there is no pod: what Kueue says, or the controller whose pods were refused."""
    workloads = _items(cluster, "workloads.kueue.x-k8s.io") if cluster.queue else []
    events = _items(cluster, "events", "--field-selector", "reason=FailedCreate")
    return queued(workloads, name) or refused(events, f"{name}-{stage}" if stage else name)


def _items(cluster: Cluster, *words: str) -> list[Object]:
    """None where the cluster has no such kind, or we no right to see it."""
    answer = _call(cluster, "get", *words, "-o", "json")
    return list(json.loads(answer.stdout)["items"]) if answer.returncode == 0 else []


def _get(number: str, cluster: Cluster) -> Object:
    """The Job or JobSet; empty where it is gone."""
    words = [*number.split("/"), "-o", "json", "--ignore-not-found"]
    text = kubectl(cluster, "get", *words)
    return json.loads(text) if text.strip() else {}


def _pods(number: str, cluster: Cluster) -> list[Object]:
    whole, _, stage = number.partition("#")
    kind, _, name = whole.partition("/")
    label = "jobset.sigs.k8s.io/jobset-name" if kind == "jobset" else "batch.kubernetes.io/job-name"
    text = kubectl(cluster, "get", "pods", "-l", f"{label}={name}", "-o", "json")
    found: list[Object] = json.loads(text)["items"]
    part = re.compile(rf"{stage}(-\d+)?" if stage else ".*")
    named = "jobset.sigs.k8s.io/replicatedjob-name"
    return [p for p in found if part.fullmatch(p["metadata"].get("labels", {}).get(named, stage))]


def logs(number: str, cluster: Cluster, follow: bool, run: str | None = None) -> int:
    """Shows every pod's log, each line with its pod; how many there were.

    With `follow` until the job has ended, and of the pods that replace others too.
    """
    shown: dict[str, subprocess.Popen[bytes]] = {}

    def look() -> bool:
        found, pods = _seen(number, cluster, run)
        for pod in pods:
            name = pod["metadata"]["name"]
            if name not in shown and pod["status"].get("phase") != "Pending":
                words = ["logs", name, "-c", "main", "--prefix", "--tail=-1"]
                shown[name] = subprocess.Popen(command(cluster, *words, *(["-f"] * follow)))
                if not follow:
                    shown[name].wait()
        return follow and found.state.live

    for _ in watched(look, lambda: [process.poll() for process in shown.values()]):
        pass
    for process in shown.values():
        process.wait()
    return len(shown)


def cancel(number: str, cluster: Cluster, run: str | None = None) -> None:
    """Deletes it, a stage with its whole chain; pods get SIGTERM and their grace to save."""
    whole, _, stage = number.partition("#")
    there = _get(whole, cluster) if run is not None else {}
    if run is not None and there and (whose := _stranger(there, stage, run)):
        raise SubmitError(f"{whole} is not this job any more, but of {whose}")
    kubectl(cluster, "delete", *whole.split("/"), "--cascade=foreground", "--wait=false")


def _reason(stderr: str) -> str:
    lines = [
        line for line in stderr.strip().splitlines() if not line.startswith(("E0", "W0", "I0"))
    ]
    told = re.sub(
        r"^(error|Error from server \(\w+\)|Error from server): ?", "", last_line("\n".join(lines))
    )
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, told, re.I)]
    return f"kubectl: {told}" + (f" ({hints[0]})" if hints else "")
