"""Nodes, processes, threads and GPUs: how many, and the place of this process among them.

torch is imported inside functions: login nodes load this file.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline.common.environment import core_count, count
from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig


def process_count(config: TrainConfig) -> int:
    """Return the processes of this machine: `processes=`, or one for each GPU, else 1."""
    given, single = count("processes", config.processes), config.parallel.strategy == "single"
    return given or (1 if single else max(1, visible_gpus()))


def submitted_processes(config: TrainConfig) -> int:
    """Return the processes of all nodes that a submitted run will have."""
    cluster = config.cluster
    return (
        process_count(config) if cluster.scheduler == "local" else cluster.nodes * cluster.processes
    )


def visible_gpus() -> int:
    """Return the number of CUDA devices this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def uses_gpu(config: TrainConfig) -> bool:
    """Return whether this process trains on a GPU.

    Raises ConfigError where it would fall back to the CPU although GPUs are requested, or present
    and counted by `processes=auto`; and where two processes would share one, which NCCL refuses.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked, local = config.cluster.gpus_per_node, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not gpus and asked:
        raise ConfigError(
            f"cluster.gpus_per_node={asked}, but torch sees no GPU on this node: check the driver "
            f"and CUDA_VISIBLE_DEVICES (`doctor`)"
        )
    if not gpus and config.processes == "auto" and (there := visible_gpus()):
        raise ConfigError(
            f"this machine has {there} GPUs by its driver, but torch sees none: check its build "
            f"(`doctor`), or give processes=1 to train on the CPU"
        )
    if 0 < gpus < local:
        raise ConfigError(
            f"{local} processes were started on this node, but torch sees {gpus} GPUs: give "
            f"processes=auto, one for each, or hide them with CUDA_VISIBLE_DEVICES="
        )
    return gpus > 0


def check_precision(wanted: str, gpus: Callable[[], int] = visible_gpus) -> None:
    """Check that there are GPUs for fp16; they are counted only then."""
    if wanted == "fp16" and not gpus():
        raise ConfigError("precision=fp16 needs a GPU; on this CPU use fp32, bf16 or auto")


def choose_precision(wanted: str, on_gpu: bool) -> str:
    """Resolve `auto`: bf16 where the device has it natively (CUDA from sm_80, CPUs with AMX)."""
    import torch

    newer = on_gpu and torch.cuda.get_device_capability()[0] >= 8
    if wanted == "auto":
        return "bf16" if newer or not on_gpu and torch.cpu._is_amx_tile_supported() else "fp32"
    check_precision(wanted, lambda: on_gpu)
    if wanted == "bf16" and on_gpu and not newer:
        raise ConfigError("precision=bf16: this GPU has no bf16; use precision=fp16 or fp32")
    return wanted


def thread_count(wanted: str, processes: int) -> int:
    """Return the threads of each process: `threads=`, or the cores divided by the processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return count("threads", wanted) or max(1, core_count() // local)


@dataclass(frozen=True)
class Place:
    """This launcher's place in the job."""

    nodes: int
    node_rank: int
    processes: int
    master_addr: str
    master_port: int
    grace: float = 120.0  # seconds that workers get to save

    @property
    def workers(self) -> list[dict[str, str]]:
        """The environment of each worker of this node, in the names of torchrun."""
        return [
            {
                "RANK": str(self.node_rank * self.processes + local_rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(self.nodes * self.processes),
                "LOCAL_WORLD_SIZE": str(self.processes),
                "MASTER_ADDR": self.master_addr,
                "MASTER_PORT": str(self.master_port),
            }
            for local_rank in range(self.processes)
        ]


def place(environment: Mapping[str, str], processes: int) -> Place:
    """Return the launcher's place; the only function that reads `PET_*`."""
    if "PET_NNODES" not in environment:
        return Place(1, 0, processes, "127.0.0.1", free_port())
    try:
        return Place(
            int(environment["PET_NNODES"]),
            int(environment.get("PET_NODE_RANK", "0")),
            int(environment.get("PET_NPROC_PER_NODE", processes)),
            environment.get("PET_MASTER_ADDR", "127.0.0.1"),
            int(environment.get("PET_MASTER_PORT", "29400")),
            float(environment.get("PET_SHUTDOWN_TIMEOUT", "120")),
        )
    except ValueError as error:
        raise ConfigError(f"PET_* must be numbers, as for torchrun: {error}") from None


def check_worker(environment: Mapping[str, str]) -> None:
    """Check that RANK, which makes this process a worker, was set by a launcher."""
    needed = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if "RANK" in environment and missing:
        raise ConfigError(
            f"RANK={environment['RANK']} is set, but {' and '.join(missing)} is not: unset RANK, "
            "or start this process by torchrun"
        )


def interface(master: str) -> str | None:
    """Return the network interface that leads to the node `master`; None if all are this machine.

    gloo alone would take that of this machine's host name, which may not resolve, or to 127.0.1.1.
    On the master its own name may do so too: there the default route's, or the only one, counts.
    Raises ConfigError where that does not decide.
    """
    import psutil

    if master == "localhost" or re.fullmatch(r"127[\d.]*|\[?::1\]?", master):
        return None
    found: list[tuple[str, str]] = [
        (i, a.address) for i, every in psutil.net_if_addrs().items() for a in every
    ]
    for target in (master, "192.0.2.1"):  # of no machine: only its route is asked, nothing is sent
        with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            own = probe.getsockname()[0]
            if not own.startswith("127."):
                return next(name for name, address in found if address == own)
    outside = {i for i, address in found if re.fullmatch(r"(?!127\.)[\d.]+", address)}
    if len(outside) <= 1:  # none: only IPv6
        return next(iter(outside), None)
    raise ConfigError(
        f"MASTER_ADDR={master} does not tell which network interface leads to the other nodes: "
        f"set GLOO_SOCKET_IFNAME to one of {', '.join(sorted(outside))}"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
