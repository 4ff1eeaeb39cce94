"""What this machine's devices can do: GPUs, precision, CPU cores."""

from __future__ import annotations

import os

import torch

from pipeline.config.compose import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import counted, visible_gpus


def uses_gpu(config: TrainConfig) -> bool:
    """Whether this process trains on a GPU.

    ConfigError where it would fall back to the CPU though GPUs are asked for, or are there and
    counted by `processes=auto`; and where two processes would share one, which NCCL refuses.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked, local = config.cluster.gpus_per_node, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not count and asked:
        raise ConfigError(
            f"cluster.gpus_per_node={asked}, but torch sees no GPU on this node: check the driver "
            f"and CUDA_VISIBLE_DEVICES (`doctor`)"
        )
    if not count and config.processes == "auto" and (there := visible_gpus()):
        raise ConfigError(
            f"this machine has {there} GPUs by its driver, but torch sees none: check its build "
            f"(`doctor`), or give processes=1 to train on the CPU"
        )
    if 0 < count < local:
        raise ConfigError(
            f"{local} processes were started on this node, but torch sees {count} GPUs: give "
            f"processes=auto, one for each, or hide them with CUDA_VISIBLE_DEVICES="
        )
    return count > 0


def choose_precision(wanted: str, on_gpu: bool) -> str:
    """`auto` is bf16 where the device has it natively: CUDA from sm_80, CPUs with AMX."""
    if wanted == "auto":
        if on_gpu:
            return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
        return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
    if wanted == "fp16" and not on_gpu:
        raise ConfigError("precision=fp16 needs a GPU; on this CPU use fp32, bf16 or auto")
    if wanted == "bf16" and on_gpu and torch.cuda.get_device_capability()[0] < 8:
        raise ConfigError("precision=bf16: this GPU has no bf16; use precision=fp16 or fp32")
    return wanted


def core_count() -> int:
    """CPU cores that this process may use; macOS does not say, and has them all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(wanted: str, processes: int) -> int:
    """`threads=`: a number, or this machine's cores shared by its processes."""
    if wanted == "auto":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        return max(1, core_count() // local)
    return counted("threads", wanted)
