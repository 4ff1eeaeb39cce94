"""Render a job as an Indexed Job with a headless Service, or as a JobSet.

Objects are built as data and dumped as YAML. The exit status of a pod decides what the Job
controller does: after 75 or an eviction the pod is replaced and not counted, 78 fails the Job, and
a crash is retried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from jobs.pod import Object, labels, template
from jobs.spec import Cluster, Job, SubmitError, one_line

RUN, COMMIT = "lacuna/run", "lacuna/commit"
MAX_DEPENDENCIES = 5  # of a replicatedJob (MaxItems of dependsOn in JobSet's API)


def render(job: Job, cluster: Cluster) -> str:
    """Return the manifest of one job as YAML."""
    return dumped(manifest(job, cluster))


def dumped(objects: Sequence[Object]) -> str:
    import yaml

    return yaml.safe_dump_all(objects, sort_keys=False, default_flow_style=False, width=100)


def manifest(job: Job, cluster: Cluster) -> list[Object]:
    """Return Service and Job, or one JobSet. Raises `SubmitError` for an invalid job."""
    if cluster.kind == "jobset":
        return [jobset([job], [cluster], job_name(job, cluster))]
    name = job_name(job, cluster)
    nodes = 1 if job.elements else cluster.nodes
    if job.elements and cluster.nodes > 1:
        raise SubmitError(
            f"array elements with cluster.nodes={cluster.nodes} each need cluster.kind=jobset; set "
            "it, or submit each element on its own"
        )
    objects = [
        _object("batch/v1", "Job", name, job, cluster, {
            **_job(job, cluster, _master(name, name, nodes), name, gang=not job.elements),
            "ttlSecondsAfterFinished": cluster.ttl_hours * 3600,
        })
    ]  # fmt: skip
    if nodes > 1:
        objects.insert(0, _service(name, job, cluster))
    return objects


def chain(jobs: Sequence[Job], clusters: Sequence[Cluster]) -> list[Object]:
    """Return the JobSet of a chain; each stage depends on the previous one."""
    if any(c.kind != "jobset" for c in clusters):
        raise SubmitError(
            "a chain on Kubernetes needs cluster.kind=jobset, with JobSet's controller installed: "
            "set it, or submit the stages one after the other"
        )
    return [jobset(jobs, clusters, job_name(jobs[-1], clusters[-1]))]


def jobset(jobs: Sequence[Job], clusters: Sequence[Cluster], name: str) -> Object:
    """Return one replicatedJob per stage, or per element of an array of multi-node elements."""
    made: list[Object] = []
    before: list[str] = []
    for label, job, cluster in zip(stages(jobs), jobs, clusters):
        stage = [job]
        if job.elements and cluster.nodes > 1:
            stage = [_element(job, i) for i in range(len(job.elements))]
            if cluster.throttle:
                raise SubmitError(
                    f"cluster.throttle={cluster.throttle}: elements of several nodes each start "
                    "together; leave cluster.throttle= out, or submit the elements separately"
                )
        if len(before) > MAX_DEPENDENCIES:
            raise SubmitError(
                f"`{job.verb}` would wait for {len(before)} Jobs, and JobSet allows at most "
                f"{MAX_DEPENDENCIES}: submit `{job.verb}` when the sweep has ended"
            )
        names = [f"{label}-{i}" if len(stage) > 1 else label for i in range(len(stage))]
        for part, member in zip(names, stage):
            # JobSet refuses a name that is too long with a pod's suffix `-abcde`.
            short(f"{name}-{part}-0-{max(cluster.nodes, len(member.elements)) - 1}", room=6)
            nodes = 1 if member.elements else cluster.nodes
            spec = _job(member, cluster, _master(f"{name}-{part}-0", name, nodes), None,
                        gang=not member.elements)  # fmt: skip
            if not member.elements:
                # One failure fails the Job, and the JobSet restarts all of its pods together.
                del spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]
                spec["backoffLimit"] = 0
            mark: Object = {"annotations": {RUN: one_line("run", job.run)}}
            part_spec: Object = {
                "name": part, "replicas": 1, "template": {"metadata": mark, "spec": spec}
            }  # fmt: skip
            if before:
                part_spec["dependsOn"] = [{"name": b, "status": "Complete"} for b in before]
            made.append(part_spec)
        before = names
    last = clusters[-1]
    return _object("jobset.x-k8s.io/v1alpha2", "JobSet", name, jobs[-1], last, {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": max(c.retries for c in clusters),
            # When the Job of an array fails, its elements have used their retries.
            "rules": [{"name": "hopeless", "action": "FailJobSet",
                       "onJobFailureReasons": ["PodFailurePolicy", "FailedIndexes"]}],
        },
        "ttlSecondsAfterFinished": last.ttl_hours * 3600,
        "replicatedJobs": made,
    })  # fmt: skip


def stages(jobs: Sequence[Job]) -> list[str]:
    """Name the stages of a chain by their commands; a repeated command gets a number."""
    verbs = [job.verb for job in jobs]
    again = [verbs[:place].count(verb) for place, verb in enumerate(verbs)]
    return [f"{verb}-again{n}" if n else verb for verb, n in zip(verbs, again)]


def parts(job: Job, cluster: Cluster) -> list[str]:
    """Return the names of the log and state files that a job's pods write to its folder."""
    members = [f"{i}-" for i in range(len(job.elements))] if cluster.nodes > 1 else []
    count = cluster.nodes if members or not job.elements else len(job.elements)
    return [f"pod-{member}{i}" for member in members or [""] for i in range(count)]


def _element(job: Job, index: int) -> Job:
    arguments = (*job.arguments, *job.elements[index])
    return replace(job, arguments=arguments, elements=(), part=f"{index}-")


def job_name(job: Job, cluster: Cluster) -> str:
    """Return the job's name as a DNS label with room for the pods' indices."""
    given = cluster.name or job.id
    name = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"run-{name}".rstrip("-")
    return short(name, room=len(str(max(cluster.nodes, len(job.elements)))) + 1)


def short(name: str, room: int = 0) -> str:
    """Refuse a name that is too long for a DNS label with `room` more characters."""
    if len(name) + room > 63:
        raise SubmitError(
            f"the name {name!r} has {len(name)} characters, at most {63 - room} are allowed: give "
            "a shorter one with cluster.name="
        )
    return name


def _master(prefix: str, subdomain: str, nodes: int) -> str:
    return f"{prefix}-0.{subdomain}" if nodes > 1 else "127.0.0.1"


def _object(api: str, kind: str, name: str, job: Job, cluster: Cluster, spec: Object) -> Object:
    marks = labels(job)
    if cluster.queue and kind != "Service":
        marks["kueue.x-k8s.io/queue-name"] = cluster.queue
    notes = {RUN: one_line("run", job.run), COMMIT: job.commit or ""}
    metadata: Object = {"name": name, "labels": marks, "annotations": notes}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _service(name: str, job: Job, cluster: Cluster) -> Object:
    """Return the Service that names the pods, also before they are ready: they wait for peers."""
    return _object("v1", "Service", name, job, cluster, {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": name},
        "ports": [{"name": "rendezvous", "port": cluster.port}],
    })  # fmt: skip


def _job(job: Job, cluster: Cluster, master: str, subdomain: str | None, gang: bool) -> Object:
    count = cluster.nodes if gang else len(job.elements)
    spec: Object = {
        "completions": count,
        "parallelism": count if gang else min(cluster.throttle or count, count),
        "completionMode": "Indexed",
        "backoffLimitPerIndex": cluster.retries,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules(gang)},
        "template": template(job, cluster, master, subdomain if gang and count > 1 else None),
    }
    if not gang:
        del spec["maxFailedIndexes"]  # a failed element does not stop the others
    return spec


def _rules(gang: bool) -> list[Object]:
    """Return the failure rules: first match wins; no match counts against the index's retries."""

    def exits(action: str, code: int) -> Object:
        on = {"containerName": "main", "operator": "In", "values": [code]}
        return {"action": action, "onExitCodes": on}

    return [
        exits("FailJob" if gang else "FailIndex", os.EX_CONFIG),
        exits("Ignore", os.EX_TEMPFAIL),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
