"""Checks that all ranks share configuration and data, and advice when device memory runs out.

Nodes have their own disks, caches and configuration folders. Ranks that differ would train on other
images or towards other losses, or wait for each other for ever.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.resolve import leaves
from pipeline.config.schema import TrainConfig
from pipeline.training import method
from pipeline.training.engine import Engine
from pipeline.training.method import Method
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


@contextmanager
def explain_out_of_memory(
    networks: Method, engine: Engine, image: Tensor, mask: Tensor, accumulate: int
) -> Iterator[None]:
    """If the micro-batch does not fit the device, raise a ConfigError that says what does."""

    def attempt(count: int) -> None:
        with engine.alone(networks.players):
            method.backward(networks, engine, image[:count], mask[:count], 1.0)

    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # frames keep the tensors that must be freed
        if engine.stage:  # ZeRO's backward is a collective, which one rank cannot try alone
            raise ConfigError(
                f"out of device memory with {len(image)} images per process and micro-batch: set "
                f"accumulate={2 * accumulate}, which keeps the global batch size"
            ) from None
        raise batch_too_large(len(image), accumulate, attempt) from None


def out_of_memory_outside_step(error: torch.OutOfMemoryError, accumulate: int) -> ConfigError:
    """Return the error for memory that ran out in validation, an optimizer or a checkpoint."""
    reason = ". ".join(str(error).split(". ")[:2])
    return ConfigError(
        f"out of device memory outside of forward and backward ({reason}): set "
        f"accumulate={2 * accumulate}, which keeps the global batch size, or lower "
        f"validate.size="
    )


def batch_too_large(images: int, accumulate: int, attempt: Callable[[int], None]) -> ConfigError:
    """Return the error for a micro-batch of `images` per process that did not fit.

    attempt: runs forward and backward of so many images without other ranks; the count is halved
    until it fits.
    """
    problem = f"out of device memory with {images} images per process and micro-batch"
    fits = images // 2
    while fits and not _fits(attempt, fits):
        fits //= 2
    if not fits:
        return ConfigError(f"{problem}; not even one fits: lower data.crop= or the model's widths")
    parts = next(n for n in range(2, images + 1) if images % n == 0 and images // n <= fits)
    return ConfigError(
        f"{problem}; {images // parts} fit: set accumulate={accumulate * parts}, which keeps the "
        f"global batch size, or lower batch="
    )


def _fits(attempt: Callable[[int], None], count: int) -> bool:
    torch.cuda.empty_cache()
    try:
        attempt(count)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        return False
    return True
