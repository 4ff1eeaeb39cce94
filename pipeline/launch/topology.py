"""How many: processes, threads, GPUs. Nothing heavy is imported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.common.secrets import ConfigError
from pipeline.config.schema import TrainConfig

DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # in /dev: NVIDIA's, AMD's, a Windows host's


def process_count(config: TrainConfig) -> int:
    """`processes=`: a number, or one for each GPU, else 1."""
    if config.parallel.strategy == "single":
        if config.processes != "auto" and counted("processes", config.processes) > 1:
            raise ConfigError(
                f"processes={config.processes}, but parallel=single is one process: give "
                f"processes=1, or parallel=ddp"
            )
        return 1
    if config.processes == "auto":
        return max(1, visible_gpus())
    return counted("processes", config.processes)


def counted(name: str, text: str) -> int:
    """A number of `name=`, 1 or more, where it is not `auto`."""
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name}={text} is no count; give 1, 2, … or auto")
    return int(text)


def visible_gpus() -> int:
    """CUDA devices this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def surely_no_gpu() -> bool:
    """True where torch cannot see one either; a container may have a GPU without nvidia-smi."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    there = not hidden and any(next(Path("/dev").glob(name), None) for name in DEVICES)
    return not there and not visible_gpus()
