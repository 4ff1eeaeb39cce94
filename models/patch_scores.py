"""From scores to paste weights in each order of contextual attention, in streams of blocks.

A block is n×g×w×h×v: values of g grid rows of w queries against a grid of h×v keys. Each stage
turns an iterator of blocks into another, in order; only `box` reads neighboring blocks, so
that a few blocks are alive at a time and every value is computed once. Gradients stream the same
way through the transposed stages; `box` is its own transpose.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Scale(NamedTuple):
    """One patch size: the terms that turn its scores into weights.

    query: n×H×W, multiplies the rows (order `paper`). key: n×h×v, multiplies the columns.
    closed: n×h×v, −∞ at keys that may not be copied, else 0.
    counted: n×h×v, 1 at keys whose weights add up to 1 (order `paper`), else 0.
    filled: n×h×v, 1 at cells that pasted patches have a value of, else 0. Each pasted cell is the
        mean over them; None divides by the cells of a patch instead.
    """

    radius: int
    query: Tensor
    key: Tensor
    closed: Tensor
    counted: Tensor
    filled: Tensor | None = None


class Weights(NamedTuple):
    """A block of paste weights, and the values that its gradient needs."""

    weight: Tensor
    score: Tensor
    softmax: Tensor
    mass: Tensor | None
    terms: Scale


class Gradient(NamedTuple):
    """A block's gradients: of its scores, and of its own queries' and of all keys' terms."""

    score: Tensor
    query: Tensor | None
    key: Tensor


def fork(items: Iterable[T], count: int = 2) -> list[Iterator[T]]:
    """`count` iterators over the same items, each item freed once all have passed it.

    `itertools.tee` frees its items 57 at a time: here that would be whole maps.
    """
    source = iter(items)
    waiting: list[deque[T]] = [deque() for _ in range(count)]

    def branch(mine: deque[T]) -> Iterator[T]:
        while mine or _advance(source, waiting):
            yield mine.popleft()

    return [branch(mine) for mine in waiting]


def _advance(source: Iterator[T], waiting: Sequence[deque[T]]) -> bool:
    """Hand the next item to every branch; False at the end."""
    for item in source:
        for queue in waiting:
            queue.append(item)
        return True
    return False


def box(blocks: Iterable[Tensor], radius: int, coupled: bool = True) -> Iterator[Tensor]:
    """Σ_{|i|,|j| ≤ radius} M[q + (i, j), t + (i, j)], zero outside; with t fixed unless coupled.

    Blocks must have at least `radius` grid rows, the last one excepted.
    """
    if radius == 0:
        yield from blocks
        return
    before = None
    wide = (_box_columns(block, radius, coupled) for block in blocks)
    here = next(wide)
    for after in chain(wide, (None,)):
        yield _box_rows(before, here, after, radius, coupled)
        before, here = here, after  # type: ignore[assignment]


def _box_columns(x: Tensor, radius: int, coupled: bool) -> Tensor:
    out = x.clone()
    for j in (j for j in range(-radius, radius + 1) if j):
        _add_shifted(out, x, (2, j), (4, j if coupled else 0))
    return out


def _box_rows(
    before: Tensor | None, here: Tensor, after: Tensor | None, radius: int, coupled: bool
) -> Tensor:
    out = here.clone()
    for i in (i for i in range(-radius, radius + 1) if i):
        key = (3, i if coupled else 0)
        _add_shifted(out, here, (1, i), key)
        if after is not None and i > 0:
            _add_shifted(out, after, (1, i - here.shape[1]), key)
        if before is not None and i < 0:
            _add_shifted(out, before, (1, i + before.shape[1]), key)
    return out


def _add_shifted(out: Tensor, x: Tensor, *shifts: tuple[int, int]) -> None:
    """out[i] += x[i + shift] along each (dimension, shift), where both exist."""
    for dim, shift in shifts:
        first, size = max(0, -shift), out.shape[dim]
        if size == x.shape[dim]:  # always true in an exported graph, which cannot resolve a min()
            length = size - abs(shift)
        else:
            length = min(size, x.shape[dim] - shift) - first
        if length <= 0:
            return
        out, x = out.narrow(dim, first, length), x.narrow(dim, first + shift, length)
    out += x


def overlap(rows: Tensor, scale: Scale) -> Tensor | int:
    """What the sum of patches pasted onto each row's cell is divided by: …×1, from …×(h·v).

    The total weight of their values there. Without `filled` the cells of a patch: as many patches
    paste onto a cell far from the border.
    """
    if scale.filled is None:
        return (2 * scale.radius + 1) ** 2
    return rows @ scale.filled.flatten(-2)[..., None]


def _softmax(x: Tensor) -> Tensor:
    return x.flatten(3).softmax(3).view_as(x)


def _softmax_backward(gradient: Tensor, softmax: Tensor) -> Tensor:
    flat = torch.ops.aten._softmax_backward_data(
        gradient.flatten(3), softmax.flatten(3), 3, softmax.dtype
    )
    return flat.view_as(softmax)


def _weigh_paper(
    scores: Iterable[Tensor], terms: Sequence[Scale], propagation: int
) -> Iterator[Weights]:
    """Cosines → softmax → propagation (eq. 2) → renormalization over the counted keys."""

    def probabilities() -> Iterator[tuple[Tensor, Tensor, Scale]]:
        for score, t in zip(scores, terms):
            cosine = torch.addcmul(t.closed, score, t.key).mul_(t.query)
            yield score, _softmax(cosine), t

    kept, spread = fork(probabilities())
    for (score, softmax, t), summed in zip(kept, box((a for _, a, _ in spread), propagation)):
        weight = summed * t.counted if summed is softmax else summed.mul_(t.counted)
        mass = weight.sum((3, 4), keepdim=True).reciprocal_()
        yield Weights(weight.mul_(mass), score, softmax, mass, t)


def _unweigh_paper(
    weights: Iterable[Weights], gradients: Iterable[Tensor], propagation: int
) -> Iterator[Gradient]:
    before, after = fork(weights)

    def of_sums() -> Iterator[Tensor]:
        for w, g in zip(before, gradients):
            inner = torch.linalg.vecdot(g.flatten(3), w.weight.flatten(3))[..., None, None]
            yield (g - inner).mul_(w.mass).mul_(w.terms.counted)

    for w, g in zip(after, box(of_sums(), propagation)):
        g = _softmax_backward(g, w.softmax).mul_(w.terms.key).mul_(w.terms.query)
        product = g * w.score
        query = product.sum((3, 4)) / w.terms.query[..., 0, 0]
        yield Gradient(g, query, product.sum((1, 2)) / w.terms.key[:, 0, 0])


def _weigh_released(
    scores: Iterable[Tensor], terms: Sequence[Scale], propagation: int
) -> Iterator[Weights]:
    """Propagation over queries alone → softmax; pastes the normalized keys."""
    for score, t in zip(box(scores, propagation, coupled=False), terms):
        softmax = _softmax(torch.addcmul(t.closed, score, t.key))
        yield Weights(softmax * t.key, score, softmax, None, t)


def _unweigh_released(
    weights: Iterable[Weights], gradients: Iterable[Tensor], propagation: int
) -> Iterator[Gradient]:
    def of_scores() -> Iterator[Gradient]:
        for w, g in zip(weights, gradients):
            pasted = (g * w.softmax).sum((1, 2))
            g = _softmax_backward(g * w.terms.key, w.softmax)
            scored = (g * w.score).sum((1, 2))
            yield Gradient(g.mul_(w.terms.key), None, pasted + scored)

    kept, spread = fork(of_scores())
    for g, score in zip(kept, box((g.score for g in spread), propagation, coupled=False)):
        yield g._replace(score=score)


class Order(NamedTuple):
    """Scores to weights, and gradients back; both on streams."""

    weigh: Callable[[Iterable[Tensor], Sequence[Scale], int], Iterator[Weights]]
    unweigh: Callable[[Iterable[Weights], Iterable[Tensor], int], Iterator[Gradient]]


PAPER = Order(_weigh_paper, _unweigh_paper)
RELEASED = Order(_weigh_released, _unweigh_released)
