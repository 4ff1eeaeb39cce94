"""DeepFill's contextual attention (Yu et al. 2018, their code v1.0.0), the order `yu`.

Scores are taken between every second cell, f₂ = f[::2, ::2]; 4×4 patches of f are pasted at
stride 2. With D[q, t] = ⟨f₂_q, f₂_t⟩, all of it is five products and sums of shifted copies of
n×h×w×h×w maps (queries × keys), for a whole batch with another mask for each image:

    1 scores     box(D, r) / max(‖patch_t‖, 1e-4); queries are not normalized
    2 fusion     Σ_k M[q + k, t + k] over flattened indices, row by row, then column by column; as
                 released it runs on over the ends of rows
    3 softmax    a = softmax(λ · s · m) · m, where m is 0 at keys that may not be copied: these
                 keep their share, so that a row sums to less than 1
    4 paste      a 4×4 patch at stride 2 meets the pixels of one parity twice per axis, so that
                 pixel 2i + a comes from pixels 2u + a with weights W[i, u] + W[i ∓ 1, u ∓ 1]

Dense: 4·N² bytes a map and about ten maps an image, N = h·w (4 MB at 256×256 pixels).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4  # of a patch's norm
Move = tuple[tuple[slice, ...], tuple[slice, ...]]  # where to add, and what


def attend_strided(
    features: Tensor, refused: Tensor, radius: int, temperature: float, propagation: int
) -> Tensor:
    """features: n×C×2h×2w, float32 or float64. refused: n×h×w bool, keys not to be copied."""
    small = features[:, :, ::2, ::2]
    n, _, height, width = small.shape
    grid = (height, width)
    products = small.flatten(2).transpose(1, 2) @ small.flatten(2)
    scores = products.view(n, height, width, height, width)
    for axis in (0, 1):
        scores = _add(scores, _diagonal(grid, axis, _around(radius)))
    squares = small.square().sum(1, keepdim=True)
    norms = F.avg_pool2d(squares, 2 * radius + 1, 1, radius, divisor_override=1)
    scores = scores / norms.clamp(min=FLOOR**2).sqrt()[:, :, None]
    for axis in (1, 0):
        scores = _add(scores, _diagonal(grid, axis, _around(propagation), wraps=True))
    allowed = (~refused).to(scores.dtype).flatten(1)[:, None, None]
    weights = (scores.flatten(3) * (allowed * temperature)).softmax(3) * allowed
    return _paste(weights.view_as(scores), features)


def _paste(weights: Tensor, features: Tensor) -> Tensor:
    n, *grid = weights.shape[:3]
    quarters = []
    for a in (0, 1):
        rows = _add(weights, _diagonal(grid, 0, (2 * a - 1,)))
        for b in (0, 1):
            both = _add(rows, _diagonal(grid, 1, (2 * b - 1,)))
            source = features[:, :, a::2, b::2].flatten(2)
            pasted = both.flatten(3).flatten(1, 2) @ source.transpose(1, 2)
            quarters.append(pasted.transpose(1, 2).reshape(n, -1, *grid))
    return F.pixel_shuffle(torch.stack(quarters, 2).flatten(1, 2), 2) / 4


def _around(reach: int) -> list[int]:
    return [k for k in range(-reach, reach + 1) if k]


def _diagonal(
    grid: Sequence[int], axis: int, steps: Sequence[int], wraps: bool = False
) -> list[Move]:
    """Moves of M[q + k, t + k] to M[q, t], k steps along an axis (0: down, 1: right).

    wraps: beyond the end of a row or column the next one begins.
    """
    moves = []
    for k in steps:
        start, end = slice(None, -k), slice(k, None)  # of k > 0: what has a successor, and is one
        first, last = slice(None, k), slice(-k, None)
        if k < 0:
            start, end, first, last = slice(-k, None), slice(None, k), slice(k, None), slice(-k)
        pairs: list[Move] = [((start, slice(None)), (end, slice(None)))]
        if wraps:
            before, after = slice(None, -1), slice(1, None)
            across = (before, after) if k > 0 else (after, before)
            pairs.append(((last, across[0]), (first, across[1])))
        if axis:
            pairs = [(here[::-1], there[::-1]) for here, there in pairs]
        moves += [(here + to, there + of) for here, there in pairs for to, of in pairs]
    return moves


def _add(x: Tensor, moves: Sequence[Move]) -> Tensor:
    """`x` and its moved copies in one sum."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Add.apply(x, moves)
    return _sum(x, moves)


def _sum(x: Tensor, moves: Sequence[Move]) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    for here, there in moves:
        out[:, *here].add_(x[:, *there])
    return out


class _Add(torch.autograd.Function):
    """Autograd's own way back through slices would fill a map with zeros for each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, moves: Sequence[Move]) -> Tensor:
        ctx.moves = moves
        return _sum(x, moves)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _add(gradient, [(there, here) for here, there in ctx.moves]), None
