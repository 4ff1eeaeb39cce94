"""Kubernetes: a job as an Indexed Job with a headless Service, or as a JobSet.

Objects are built as data and dumped as YAML, never written as text. The pods run our processes with
the launch contract in their environment; the exit status decides what the Job controller does:
75 and evictions are replaced without being counted, 78 ends it, a crash is tried again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from jobs.pod import Object, labels, template
from jobs.spec import CONFIGURATION, SAVED, Cluster, Job, SubmitError, one_line

RUN, COMMIT = "lacuna/run", "lacuna/commit"
MOST = 5  # items of a replicatedJob's dependsOn (MaxItems in JobSet's API)


def render(job: Job, cluster: Cluster) -> str:
    """The manifest of one job, as YAML."""
    return dumped(manifest(job, cluster))


def dumped(objects: Sequence[Object]) -> str:
    import yaml

    return yaml.safe_dump_all(objects, sort_keys=False, default_flow_style=False, width=100)


def manifest(job: Job, cluster: Cluster) -> list[Object]:
    """Service and Job, or one JobSet. Raises `SubmitError` for what Kubernetes would refuse."""
    if cluster.kind == "jobset":
        return [jobset([job], [cluster], job_name(job, cluster))]
    name = job_name(job, cluster)
    nodes = 1 if job.elements else cluster.nodes
    if job.elements and cluster.nodes > 1:
        raise SubmitError(
            f"an array whose elements take cluster.nodes={cluster.nodes} each needs "
            "cluster.kind=jobset, or one submit an element"
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
    """Stages that follow one another: a JobSet whose parts depend on the one before."""
    if any(c.kind != "jobset" for c in clusters):
        raise SubmitError(
            "a chain on Kubernetes needs JobSet: set cluster.kind=jobset where its controller is "
            "installed, or submit the stages one after the other"
        )
    return [jobset(jobs, clusters, job_name(jobs[-1], clusters[-1]))]


def jobset(jobs: Sequence[Job], clusters: Sequence[Cluster], name: str) -> Object:
    """One replicatedJob a stage, or one for each element of an array of several nodes each."""
    made: list[Object] = []
    before: list[str] = []
    for label, job, cluster in zip(stages(jobs), jobs, clusters):
        stage = [job]
        if job.elements and cluster.nodes > 1:
            stage = [_element(job, i) for i in range(len(job.elements))]
            if cluster.throttle:
                raise SubmitError(
                    f"cluster.throttle={cluster.throttle}: elements of several nodes each start "
                    "together; leave it out, or submit them one after the other"
                )
        if len(before) > MOST:
            raise SubmitError(
                f"a JobSet's stage waits for {MOST} others at most, and {len(before)} come before "
                f"`{job.verb}`: submit it when the sweep has ended"
            )
        names = [f"{label}-{i}" if len(stage) > 1 else label for i in range(len(stage))]
        for part, member in zip(names, stage):
            # JobSet refuses names that leave no room for a pod's `-abcde`.
            short(f"{name}-{part}-0-{max(cluster.nodes, len(member.elements)) - 1}", room=6)
            nodes = 1 if member.elements else cluster.nodes
            spec = _job(member, cluster, _master(f"{name}-{part}-0", name, nodes), None,
                        gang=not member.elements)  # fmt: skip
            if not member.elements:
                # One failure ends the Job, and the JobSet starts all of its pods again together.
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
            # Of an array each element has had its own retries when its Job fails.
            "rules": [{"name": "hopeless", "action": "FailJobSet",
                       "onJobFailureReasons": ["PodFailurePolicy", "FailedIndexes"]}],
        },
        "ttlSecondsAfterFinished": last.ttl_hours * 3600,
        "replicatedJobs": made,
    })  # fmt: skip


def stages(jobs: Sequence[Job]) -> list[str]:
    """What the stages of a chain are called: by their verbs, a second of the same with a number."""
    verbs = [job.verb for job in jobs]
    again = [verbs[:place].count(verb) for place, verb in enumerate(verbs)]
    return [f"{verb}-again{n}" if n else verb for verb, n in zip(verbs, again)]


def parts(job: Job, cluster: Cluster) -> list[str]:
    """The names under which the pods of a job leave logs and last words in its folder."""
    members = [f"{i}-" for i in range(len(job.elements))] if cluster.nodes > 1 else []
    count = cluster.nodes if members or not job.elements else len(job.elements)
    return [f"pod-{member}{i}" for member in members or [""] for i in range(count)]


def _element(job: Job, index: int) -> Job:
    arguments = (*job.arguments, *job.elements[index])
    return replace(job, arguments=arguments, elements=(), part=f"{index}-")


def job_name(job: Job, cluster: Cluster) -> str:
    """The run's id as a DNS label; pods add their index to it."""
    given = cluster.name or job.id
    name = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"run-{name}".rstrip("-")
    return short(name, room=len(str(max(cluster.nodes, len(job.elements)))) + 1)


def short(name: str, room: int = 0) -> str:
    """Refuses what would be no DNS label once its pods' numbers are appended."""
    if len(name) + room > 63:
        raise SubmitError(
            f"the name {name!r} has {len(name)} characters, Kubernetes takes {63 - room}: give a "
            "shorter one with cluster.name="
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
    """Gives the pods their names; ready or not, for they wait for one another before they are."""
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
        del spec["maxFailedIndexes"]  # elements fail alone
    return spec


def _rules(gang: bool) -> list[Object]:
    """The first that matches holds; what none matches counts against the retries of its index."""

    def exits(action: str, code: int) -> Object:
        on = {"containerName": "main", "operator": "In", "values": [code]}
        return {"action": action, "onExitCodes": on}

    return [
        exits("FailJob" if gang else "FailIndex", CONFIGURATION),
        exits("Ignore", SAVED),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
