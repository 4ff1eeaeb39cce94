"""Bootstrap intervals of means, and of paired differences."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # images, for an interval or a verdict


def resampled_means(values: NDArray[Any], resamples: int = 2000, seed: int = 0) -> NDArray[Any]:
    """Return the means of `resamples` bootstrap samples (drawn with replacement) of `values`."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // len(values))  # indices held at once: 8 MB
    parts = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        parts.append(values[rng.integers(0, len(values), shape)].mean(1))
    return np.concatenate(parts)


def interval(means: NDArray[Any]) -> list[float]:
    """Return the 95 % percentile interval [lo, hi] of resampled means."""
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


def bootstrap(values: NDArray[Any]) -> list[float] | None:
    """Return the 95 % bootstrap interval [lo, hi] of the mean of per-image values.

    None for fewer than FEWEST: resampling so few gives an interval that is far too narrow.
    """
    return interval(resampled_means(values)) if len(values) >= FEWEST else None


def paired_bootstrap(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, Any]:
    """Compare two lists of values of the same pairs, in the same order.

    Returns `{"difference", "ci": [lo, hi], "p"}`: the mean difference ours − theirs, its 95 %
    interval, and the two-sided bootstrap p-value.
    """
    if np.shape(ours) != np.shape(theirs):
        raise ValueError(f"cannot pair {len(ours)} with {len(theirs)} values: score the same pairs")
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    means = resampled_means(difference)
    below, above = float((means <= 0).mean()), float((means >= 0).mean())
    p = min(1.0, 2 * min(below, above))
    return {"difference": float(difference.mean()), "ci": interval(means), "p": p}
