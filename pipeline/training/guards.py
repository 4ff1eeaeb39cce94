"""Checks that all ranks share configuration and data, and advice when device memory runs out.

Nodes have their own disks, caches and configuration folders. Ranks that differ would train on other
images or toward other losses, or wait for each other forever.
"""

from __future__ import annotations

import socket
from typing import Any

import torch

from pipeline.common.errors import ConfigError
from pipeline.config.resolve import leaves
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from shards.manifest import Manifest

# Keys that may differ from node to node.
PER_NODE = ("run", "root", "weights", "processes", "cluster.", "tracking.")
HINTS = {
    "data.url": "copy the same set to every node, or give a URL that all see",
    "precision": "their devices differ: give precision=fp16 or fp32 instead of auto",
}


def check_consistency(config: TrainConfig, manifest: Manifest, engine: Engine) -> None:
    """Raise the same ConfigError on every rank if any differs from rank 0, naming rank and key.

    Datasets are compared by digest, not by location. ImageNet weights need no check: rank 0 reads
    them for all ranks.
    """
    mine: dict[str, Any] = {k: str(v) for k, v in leaves(config) if not k.startswith(PER_NODE)}
    mine |= {"data.url": manifest.digest[:12], "precision": engine.precision}
    ranks = engine.gather((socket.gethostname(), mine))
    first_host, first = ranks[0]
    for rank, (host, other) in enumerate(ranks):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                hint = HINTS.get(name, "start every node with the same arguments and folders")
                raise ConfigError(
                    f"rank {rank} on {host} has {name}={other.get(name)}, rank 0 on {first_host} "
                    f"{name}={first.get(name)}: {hint}"
                )


def out_of_memory(
    error: torch.OutOfMemoryError, config: TrainConfig, world_size: int
) -> ConfigError:
    """Return the error for a step or a validation that does not fit the device."""
    reason = ". ".join(str(error).split(". ")[:2])
    images = config.batch // config.accumulate // world_size
    parts = next((n for n in range(2, images + 1) if images % n == 0), None)
    fix = "lower data.crop= or the model's widths"
    if parts is not None:
        fix = f"set accumulate={parts * config.accumulate}, which keeps the global batch size"
    return ConfigError(
        f"out of device memory with {images} images per process and micro-batch ({reason}): {fix}, "
        f"or lower validate.size= if that happened in validation"
    )
