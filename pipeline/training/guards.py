"""Ranks that were given different things are refused before the first step.

Nodes have disks, caches and configuration folders of their own. Ranks that differ would be trained
towards different losses, on different pictures, or would wait for each other for ever.
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

OWN = (
    "run",
    "root",
    "weights",
    "processes",
    "cluster.",
    "tracking.",
)  # may differ from node to node
MENDS = {
    "data.url": "copy the same set to every node, or give a URL that all see",
    "precision": "their devices differ: give precision=fp16 or fp32 instead of auto",
}


def check_consistency(config: TrainConfig, manifest: Manifest, engine: Engine) -> None:
    """ConfigError, the same on every rank, naming the first that differs from rank 0, and in what.

    Of the set its digest counts, not its place. ImageNet weights do not differ: rank 0 reads them
    for all.
    """
    mine: dict[str, Any] = {k: str(v) for k, v in leaves(config) if not k.startswith(OWN)}
    mine |= {"data.url": manifest.digest[:12], "precision": engine.precision}
    told = engine.gather((socket.gethostname(), mine))
    first_host, first = told[0]
    for rank, (host, other) in enumerate(told):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                mend = MENDS.get(name, "start every node with the same words and folders")
                raise ConfigError(
                    f"rank {rank} on {host} has {name}={other.get(name)}, rank 0 on {first_host} "
                    f"{name}={first.get(name)}: {mend}"
                )


@contextmanager
def explained(
    networks: Method, engine: Engine, image: Tensor, mask: Tensor, accumulate: int
) -> Iterator[None]:
    """A micro-batch that does not fit the device ends in one line that says what does."""

    def attempt(count: int) -> None:
        with engine.alone(networks.players):
            method.backward(networks, engine, image[:count], mask[:count], 1.0)

    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold what has to be freed
        if engine.stage:  # its backward is an exchange: nothing can be tried by one rank
            raise ConfigError(
                f"out of device memory with {len(image)} images at a time on each process: set "
                f"accumulate={2 * accumulate}, which leaves the global batch as it is"
            ) from None
        raise too_large(len(image), accumulate, attempt) from None


def elsewhere(error: torch.OutOfMemoryError, accumulate: int) -> ConfigError:
    """What to say where no micro-batch was computed: validation, an optimiser, a checkpoint."""
    told = ". ".join(str(error).split(". ")[:2])
    return ConfigError(
        f"out of device memory outside of forward and backward ({told}): set "
        f"accumulate={2 * accumulate}, which leaves the global batch as it is, or lower "
        f"validate.size="
    )


def too_large(images: int, accumulate: int, attempt: Callable[[int], None]) -> ConfigError:
    """What to say after a micro-batch of `images` a process did not fit.

    attempt: forward and backward of so many images, exchanging nothing with other ranks; tried
    with half as many until it fits.
    """
    told = f"out of device memory with {images} images at a time on each process"
    fits = images // 2
    while fits and not _fits(attempt, fits):
        fits //= 2
    if not fits:
        return ConfigError(f"{told}, nor does one fit: lower data.crop= or the model's widths")
    parts = next(n for n in range(2, images + 1) if images % n == 0 and images // n <= fits)
    return ConfigError(
        f"{told}; {images // parts} fit: set accumulate={accumulate * parts}, which leaves the "
        f"global batch as it is, or lower batch="
    )


def _fits(attempt: Callable[[int], None], count: int) -> bool:
    torch.cuda.empty_cache()
    try:
        attempt(count)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        return False
    return True
