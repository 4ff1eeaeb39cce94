"""What this machine's device can do: precision, CPU cores."""

from __future__ import annotations

import os

import torch

from pipeline.compose import ConfigError


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
    if not wanted.isdigit() or int(wanted) < 1:
        raise ConfigError(f"threads={wanted} is no count; give 1, 2, … or auto")
    return int(wanted)
