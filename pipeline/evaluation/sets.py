"""Metrics of two sets of images, from Inception's features of composites and originals.

    fid   Heusel et al., 2017; means and covariances in one pass, O(features²) of memory
    kid   Bińkowski et al., 2018; unbiased MMD² of the cubic kernel: mean and standard deviation of
          100 subsets of 1,000, drawn as torch-fidelity draws them
    ids   Zhao et al., 2021: a linear SVM between both sets; P-IDS, how often it takes the composite
          for more real than its own original, and U-IDS, how often it is wrong, in %

The features, float32, lie in a memory-mapped file; `features` are arrays N×F, composites first.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shards import store

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Metric

Features = NDArray[np.float32]
SetFunction = Callable[[Features, Features], dict[str, float]]
SUBSETS, SUBSET, SEED = 100, 1000, 2020
ALL = "all"  # name of the set of all pairs


def fid(composites: Features, originals: Features) -> dict[str, float]:
    (mean_a, a), (mean_b, b) = _moments(composites), _moments(originals)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0))
    product = np.linalg.eigvalsh(root.T @ b @ root)  # the eigenvalues of a·b
    shared = np.sqrt(product.clip(0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + a.trace() + b.trace() - 2 * shared
    return {"fid": float(distance)}


def _moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n, width = features.shape
    total, squares = np.zeros(width), np.zeros((width, width))
    for start in range(0, n, SUBSET):
        rows = features[start : start + SUBSET].astype(np.float64)
        total += rows.sum(0)
        squares += rows.T @ rows
    mean = total / n
    return mean, (squares - n * np.outer(mean, mean)) / (n - 1)


def kid(composites: Features, originals: Features) -> dict[str, float]:
    rng = np.random.RandomState(SEED)  # noqa: NPY002 - the reference's subsets
    distances = []
    for _ in range(SUBSETS):
        a, b = (
            x[rng.choice(len(x), SUBSET, replace=False)].astype(np.float64)
            for x in (composites, originals)
        )
        within = sum(k.sum() - k.trace() for k in (_kernel(a, a), _kernel(b, b)))
        distances.append(within / (SUBSET * (SUBSET - 1)) - 2 * _kernel(a, b).mean())
    return {"kid": float(np.mean(distances)), "kid_std": float(np.std(distances))}


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def ids(composites: Features, originals: Features) -> dict[str, float]:
    from sklearn.svm import LinearSVC

    inputs = np.concatenate([originals, composites])
    targets = np.repeat([1, 0], [len(originals), len(composites)])
    svm = LinearSVC(dual=False).fit(inputs, targets)
    real, fake = np.split(svm.decision_function(inputs), 2)
    wrong = 1 - svm.score(inputs, targets)
    return {"p_ids": 100 * float((fake > real).mean()), "u_ids": 100 * float(wrong)}


class Recorder:
    """Collects the features of a part's pairs, in order."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parts: list[Features] = []

    @torch.no_grad()
    def __call__(self, result: Tensor, image: Tensor) -> None:
        features = self.network(torch.cat([result, image])).cpu().numpy()
        self.parts.append(features.reshape(2, len(image), -1))

    def save(self, url: str) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(self.parts, 1))
        store.write(url, buffer.getvalue())


def join(urls: Iterable[str], buckets: Sequence[str], path: str) -> Features:
    """Join the parts' files, in the order of the pairs, in one file; sorted by bucket, 2×N×F."""
    place = np.argsort(np.argsort(buckets, kind="stable"))
    whole: Any = None
    start = 0
    for url in urls:
        part = np.load(io.BytesIO(store.read(url)))
        if whole is None:
            shape = (2, len(buckets), part.shape[2])
            whole = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        whole[:, place[start : start + part.shape[1]]] = part
        start += part.shape[1]
    assert start == len(buckets)
    return whole


def estimate(
    features: Features | None, buckets: Sequence[str], chosen: Sequence[Metric]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Return the values of each bucket and of all pairs, and a note on each metric that needs one.

    features: as `join` leaves them; None: no set is large enough.
    """
    names, counts = np.unique(buckets, return_counts=True)
    ends = counts.cumsum()
    spans = {str(n): slice(e - c, e) for n, c, e in zip(names, counts, ends)}
    if len(spans) > 1:
        spans[ALL] = slice(0, len(buckets))
    values: dict[str, dict[str, float]] = {name: {} for name in spans}
    for name, span in spans.items():
        fitting = [m.of_sets for m in chosen if span.stop - span.start >= m.least]
        for function in dict.fromkeys(fitting):
            assert features is not None and function is not None
            values[name] |= function(features[0, span], features[1, span])
    return values, {m.name: note for m in chosen if (note := _note(m, spans))}


def _note(metric: Metric, spans: dict[str, slice]) -> str:
    def below(least: int) -> list[str]:
        return [name for name, span in spans.items() if span.stop - span.start < least]

    small, texts = below(metric.least), []
    if small:
        texts.append(f"needs {metric.least:,} pairs, empty for {', '.join(small)}")
    if biased := [name for name in below(metric.unbiased) if name not in small]:
        texts.append(f"biased below {metric.unbiased:,} pairs: {', '.join(biased)}")
    return "; ".join(texts)
