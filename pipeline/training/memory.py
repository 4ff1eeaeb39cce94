"""Out of device memory: which batch fits, and what to write instead."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.config.compose import ConfigError
from pipeline.training import method
from pipeline.training.engine import Engine
from pipeline.training.method import Method


@contextmanager
def explained(
    networks: Method, engine: Engine, image: Tensor, mask: Tensor, accumulate: int
) -> Iterator[None]:
    """A micro-batch that does not fit the device ends in one line that says what does."""

    def attempt(count: int) -> None:
        with engine.alone(networks.trainees):
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
