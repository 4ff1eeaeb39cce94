"""Provenance of a run: commit, uncommitted changes, packages, hardware and scheduler job.

All text that is returned has passed through `redact`.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from jobs import git as vcs
from pipeline.common.console import say
from pipeline.common.environment import CHECKOUT, command_line, commit, core_count, cpu_name, user
from pipeline.common.secrets import redact

MAX_DIFF = 1 << 20
JOB = {
    "SLURM_JOB_ID": "slurm.job_id",
    "SLURM_ARRAY_JOB_ID": "slurm.array_job_id",
    "SLURM_ARRAY_TASK_ID": "slurm.array_task_id",
    "SLURM_RESTART_COUNT": "slurm.restart_count",
    "SLURM_JOB_NODELIST": "slurm.nodes",
    "SLURM_CLUSTER_NAME": "slurm.cluster",
    "SLURM_JOB_PARTITION": "slurm.partition",
    "POD_NAME": "pod.name",
    "POD_NAMESPACE": "pod.namespace",
    "NODE_NAME": "pod.node",
    "JOB_COMPLETION_INDEX": "pod.completion_index",
    "LACUNA_IMAGE": "image.digest",
}


def environment(checkout: Path = CHECKOUT) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tags of a run's provenance, and the texts with details by artifact path."""
    head, diff = git(checkout)
    installed = packages()
    machine = hardware()
    lock = checkout / "constraints.txt"
    tags = {
        "mlflow.source.name": redact(command_line()),
        "mlflow.source.type": "JOB",  # of LOCAL, MLflow shows only what follows the last slash
        "mlflow.user": user(),
        "git.dirty": "unknown" if diff is None else str(bool(diff)).lower(),
        "packages.sha256": hashlib.sha256(installed.encode()).hexdigest(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        **{name: os.environ[key] for key, name in JOB.items() if os.environ.get(key)},
        **{f"hardware.{key}": str(value) for key, value in machine.items()},
    }
    if head:
        tags["mlflow.source.git.commit"] = head
    if lock.exists():
        tags["lock.sha256"] = hashlib.sha256(lock.read_bytes()).hexdigest()
    files = {
        "environment/packages.txt": installed,
        "environment/hardware.json": json.dumps(machine, indent=1) + "\n",
    }
    if diff:
        files["environment/uncommitted.patch"] = diff
    return tags, files


def git(checkout: Path = CHECKOUT) -> tuple[str | None, str | None]:
    """Return the commit and the uncommitted changes (redacted, at most 1 MiB); None if unknown.

    A job's snapshot has no `.git`: `LACUNA_COMMIT` holds its commit, `LACUNA_DIFF` the URL of the
    changes.
    """
    if "LACUNA_COMMIT" in os.environ:  # git might find another checkout around the snapshot
        return commit(checkout), redact(_recorded(os.environ.get("LACUNA_DIFF")))
    try:
        with vcs.temporary_repository(checkout) as own:
            diff = vcs.diff(checkout, vcs.commit(checkout), vcs.tree(checkout, own, []), own)
        new = vcs.untracked(checkout)
    except (OSError, subprocess.SubprocessError):
        say("tracking: commit and uncommitted changes are unknown: `git status` shows the reason")
        return commit(checkout), None
    untracked = "".join(f"# untracked: {name}\n" for name in new[:200])
    return commit(checkout), redact((diff[:MAX_DIFF] + untracked).encode(errors="replace").decode())


def _recorded(url: str | None) -> str:
    """Return the changes that `submit` recorded."""
    from shards import store

    if url is None:
        return ""
    try:
        return store.read(url)[:MAX_DIFF].decode(errors="replace")
    except (OSError, ValueError):
        return f"# {store.display(url)} cannot be read\n"


def packages() -> str:
    """Return the installed distributions, one `name==version` a line, sorted."""
    lines = {
        f"{d.metadata['Name']}=={d.version}"
        for d in importlib.metadata.distributions()
        if d.version
    }
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def hardware() -> dict[str, Any]:
    """Return CPU, memory and GPUs of this machine, with the versions of torch and driver."""
    import psutil
    import torch

    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": core_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        machine |= {"gpus": torch.cuda.device_count(), "gpu": gpu.name}
        machine["gpu_memory_gb"] = round(gpu.total_memory / 2**30, 1)
        machine["cudnn"] = str(torch.backends.cudnn.version())
        if handles := _gpu_handles():
            machine["driver"] = str(handles[0].nvmlSystemGetDriverVersion())
    return machine


def system_metrics(node: str = "0", folder: str = ".") -> dict[str, float]:
    """Sample this machine under `system/<node>/`: CPU %, memory, disk, network, GPUs."""
    import psutil

    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    sample = {
        "cpu_percent": psutil.cpu_percent(),
        "memory_gb": memory.used / 2**30,
        "memory_percent": memory.percent,
        "process_rss_gb": psutil.Process().memory_info().rss / 2**30,
        "disk_percent": psutil.disk_usage(folder).percent,
        "net_received_gb": network.bytes_recv / 2**30,
        "net_sent_gb": network.bytes_sent / 2**30,
    }
    nvml, handles = _gpu_handles() or (None, [])
    for index, handle in enumerate(handles):
        assert nvml is not None
        used = nvml.nvmlDeviceGetMemoryInfo(handle)
        sample[f"gpu{index}_percent"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        sample[f"gpu{index}_memory_gb"] = used.used / 2**30
        sample[f"gpu{index}_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return {f"system/{node}/{key}": float(value) for key, value in sample.items()}


def other_node_metrics() -> dict[str, float]:
    """Return `system_metrics` in the first process of every node but the first, for rank 0.

    Empty in all other processes; the first node is sampled by its Tracker.
    """
    rank, here = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    node = rank // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {} if node == 0 or here else system_metrics(str(node))


@functools.cache
def _gpu_handles() -> tuple[Any, list[Any]] | None:
    """Return NVML and its device handles; None without nvidia-ml-py or a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    except Exception:  # NVML's own error class is missing without the package
        return None
