"""Out of device memory: which batch fits, and what to write instead."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from pipeline.compose import ConfigError


def too_large(
    error: torch.OutOfMemoryError,
    images: int,
    accumulate: int,
    attempt: Callable[[int], object],
) -> ConfigError:
    """What to say after a micro-batch of `images` a process did not fit.

    attempt: forward and backward of so many images, without exchanging anything with other ranks;
    halved until it fits.
    """
    traceback.clear_frames(error.__traceback__)  # they hold what has to be freed
    fits = images
    while fits:
        fits //= 2
        torch.cuda.empty_cache()
        try:
            if fits:
                attempt(fits)
            break
        except torch.OutOfMemoryError as again:
            traceback.clear_frames(again.__traceback__)
    told = f"out of device memory with {images} images at a time on each process"
    if not fits:
        return ConfigError(f"{told}, nor does one fit: lower data.crop= or the model's widths")
    parts = next(n for n in range(2, images + 1) if images % n == 0 and images // n <= fits)
    return ConfigError(
        f"{told}, accumulate={accumulate}: {images // parts} fit, so set "
        f"accumulate={accumulate * parts} (the global batch stays), or lower batch="
    )
