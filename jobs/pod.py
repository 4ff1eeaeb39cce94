"""Build the pod template of a job, with the launch contract in its environment.

The pod satisfies the `restricted` Pod Security Standard: it runs as any user ID but root's and can
write only to /scratch and the claims. `cluster.patch` is merged last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jobs.spec import Cluster, Job, SubmitError, check, one_line, refuse_tag

Object = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
MAX_ARGUMENT = 128 * 1024 - 1  # bytes of one argument of a Linux process
INSTANCE = "app.kubernetes.io/instance"
ENVIRONMENT = {
    "HOME": "/scratch",  # with another user ID the image's home may not be writable
    "TMPDIR": "/scratch",
    "XDG_CACHE_HOME": "/scratch/cache",
    "PYTHONDONTWRITEBYTECODE": "1",
    "NCCL_DEBUG": "WARN",
    "TORCH_FR_BUFFER_SIZE": "20000",
    "TORCH_FR_DUMP_TEMP_FILE": "/scratch/flight-",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def labels(job: Job) -> dict[str, str]:
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", job.id)[:63].strip("-_.")
    return {"app.kubernetes.io/name": "lacuna", INSTANCE: label,
            "app.kubernetes.io/component": job.verb}  # fmt: skip


def template(job: Job, cluster: Cluster, master: str, subdomain: str | None) -> Object:
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.lead_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, cluster, master)],
        "volumes": [
            # A pod over its own limit has failed; one that fills its node would be evicted, which
            # the failure rules take for a disruption and replace without end.
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{cluster.scratch_gb}Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{cluster.shm_gb}Gi"}},
            *(
                {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}}
                for i, claim in enumerate(cluster.volumes)
            ),
        ],
    }
    if subdomain:
        pod["subdomain"] = subdomain
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": s} for s in cluster.pull_secrets]
    for field, value in (
        ("nodeSelector", cluster.node_selector),
        ("tolerations", cluster.tolerations),
        ("serviceAccountName", cluster.service_account),
        ("priorityClassName", cluster.priority_class),
    ):
        if value:
            pod[field] = value
    return dict(patched({"metadata": {"labels": labels(job)}, "spec": pod}, cluster.patch))


def _container(job: Job, cluster: Cluster, master: str) -> Object:
    check(job, cluster)
    if cluster.memory_gb and cluster.shm_gb >= cluster.memory_gb:
        raise SubmitError(
            f"cluster.shm_gb={cluster.shm_gb} counts against cluster.memory_gb={cluster.memory_gb}:"
            " lower cluster.shm_gb or raise cluster.memory_gb"
        )
    image = one_line("cluster.image", cluster.image or "")
    if not image:
        raise SubmitError("cluster.image= is missing: the container image, NAME@sha256:DIGEST")
    refuse_tag(cluster)
    environment = {
        **ENVIRONMENT,
        "PET_NNODES": "1" if job.elements else str(cluster.nodes),
        "PET_NPROC_PER_NODE": str(cluster.processes),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(cluster.port),
        "PET_SHUTDOWN_TIMEOUT": str(max(1, cluster.lead_seconds - 10)),
        "LACUNA_PODS": f"{job.folder}/logs/pod-{job.part}",
        **cluster.env,
        **job.env,
    }
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    rank: Object = {"value": "0"} if job.elements else {"valueFrom": index}
    container: Object = {
        "name": "main",
        "image": image,
        "command": list(_command(job, cluster)),
        "env": [
            *({"name": n, "value": plain(v)} for n, v in environment.items()),
            {"name": "PET_NODE_RANK", **rank},
        ],
        "resources": _resources(cluster),
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *(
                {"name": f"claim-{i}", "mountPath": p}
                for i, p in enumerate(cluster.volumes.values())
            ),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if cluster.secrets:
        container["envFrom"] = [{"secretRef": {"name": s}} for s in cluster.secrets]
    return container


def _command(job: Job, cluster: Cluster) -> tuple[str, ...]:
    """Return the command in exec form: a shell as first process would swallow SIGTERM."""
    python = cluster.python or "python"
    command = job.command(python)
    if job.code and cluster.code == "snapshot":
        command = (python, "-m", "pipeline.unpack", job.code, job.code_sha256, *command[3:])
    if job.elements:
        listed = json.dumps([list(e) for e in job.elements])
        if len(listed) > MAX_ARGUMENT:
            raise SubmitError(
                f"the arguments of {len(job.elements)} elements have {len(listed)} characters, at "
                f"most {MAX_ARGUMENT} are allowed: submit the sweep in parts"
            )
        command = (python, "-m", "jobs.element", listed, *command)
    return tuple(plain(w) for w in command)


def plain(text: str) -> str:
    """Escape `$(`, which Kubernetes would substitute."""
    return text.replace("$(", "$$(")


def _resources(cluster: Cluster) -> Object:
    requests: dict[str, str] = {}
    if cluster.cpus_per_node:
        requests["cpu"] = str(cluster.cpus_per_node)
    if cluster.memory_gb:
        requests["memory"] = f"{cluster.memory_gb}Gi"
    if cluster.gpus_per_node:
        requests[cluster.gpu_resource] = str(cluster.gpus_per_node)
    limits = {k: v for k, v in requests.items() if k != "cpu"}
    # Without a request the whole limit would be reserved on the node.
    requests["ephemeral-storage"] = "1Gi"
    limits["ephemeral-storage"] = f"{cluster.scratch_gb}Gi"
    return {"requests": requests, "limits": limits}


def patched(value: Any, patch: Any) -> Any:
    """Merge `patch` into `value`: mappings by key, lists of named objects by name, else replace."""
    if isinstance(value, Mapping) and isinstance(patch, Mapping):
        merged = {k: patched(v, patch[k]) if k in patch else v for k, v in value.items()}
        return {**merged, **{k: v for k, v in patch.items() if k not in value}}
    if _named(value) and _named(patch):
        added = {item["name"]: item for item in patch}
        merged_list = [patched(item, added.pop(item["name"], {})) for item in value]
        return [*merged_list, *added.values()]
    return patch


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(item, Mapping) and "name" in item for item in value
    )  # fmt: skip
