"""Contextual attention for a GPU: all images in one form, in which no shape depends on a hole.

The same sums as `streamed_attention.py`, over the whole map of queries instead of the window of
each image's hole: more arithmetic, but a GPU need not wait for the host to look at the masks, and
`torch.compile` takes it into its graph. The backward pass computes the maps again, so that between
both only the features are kept. Images go together as far as one map of theirs (queries × keys)
fits `MAP_BYTES`; an image whose own map does not takes the streamed form.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .patch_scores import PAPER, Order, Scale, _box_columns, _box_rows, overlap

MAP_BYTES = 1 << 28  # about a dozen maps are alive


def fits(features: Tensor, keys: Tensor) -> bool:
    """Whether this form is used: on every device but a CPU, for maps of bounded size."""
    if features.device.type == "cpu" or torch.compiler.is_exporting():
        return False
    return _map_bytes(features, keys) <= MAP_BYTES


def _map_bytes(features: Tensor, keys: Tensor) -> int:
    return features[0, 0].numel() * keys[0, 0].numel() * features.element_size()


def attend_batched(
    order: Order,
    propagation: int,
    features: Tensor,
    keys: Tensor,
    wanted: Tensor,
    scales: Sequence[Scale],
) -> list[Tensor]:
    """As `streamed_attention.attend`."""
    radii = [scale.radius for scale in scales]
    together = max(1, MAP_BYTES // _map_bytes(features, keys))
    work = partial(_attend, order is PAPER, propagation, radii)
    terms = [term for scale in scales for term in scale[1:]]
    tensors = [features, keys, wanted, *terms]
    parts = zip(*([None] * len(features) if t is None else t.split(together) for t in tensors))
    # Nothing random is drawn; saving a GPU's random state would wait for it.
    done = [checkpoint(work, *p, use_reentrant=False, preserve_rng_state=False) for p in parts]
    return [torch.cat(pieces) for pieces in zip(*done)]


def _attend(
    paper: bool,
    propagation: int,
    radii: Sequence[int],
    features: Tensor,
    keys: Tensor,
    wanted: Tensor,
    *terms: Tensor | None,
) -> list[Tensor]:
    count, grid, flat = len(terms) // len(radii), keys.shape[2:], keys.flatten(2)
    products = features.flatten(2).transpose(1, 2) @ flat
    dots = products.view(*features.shape[:1], *features.shape[2:], *grid)
    outputs = []
    for i, radius in enumerate(radii):
        scale = Scale(radius, *terms[i * count : (i + 1) * count])  # type: ignore[arg-type]
        key, closed = scale.key[:, None, None], scale.closed[:, None, None]
        scores = _box(dots, radius)
        if paper:
            # −∞ is added last: as a factor of the query's gradient it would make that NaN.
            softmax = _softmax(scores * key * scale.query[..., None, None] + closed)
            spread = _box(softmax, propagation) * scale.counted[:, None, None]
            weights = spread / spread.sum((3, 4), keepdim=True)
        else:
            weights = _softmax(_box(scores, propagation, False) * key + closed) * key
        rows = _box(weights, radius).flatten(3).flatten(1, 2)
        inside = wanted.flatten(1)[..., None]
        total = torch.where(inside, overlap(rows, scale), 1)  # may be 0 outside
        pasted = (rows @ flat.transpose(1, 2) / total).transpose(1, 2).view_as(features)
        outputs.append(torch.where(wanted[:, None], pasted, features))
    return outputs


def _softmax(x: Tensor) -> Tensor:
    return x.flatten(3).softmax(3).view_as(x)


def _box(x: Tensor, radius: int, coupled: bool = True) -> Tensor:
    """`patch_scores.box` of a whole map."""
    if radius == 0:
        return x
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Box.apply(x, radius, coupled)  # type: ignore[no-any-return]
    return _box_rows(None, _box_columns(x, radius, coupled), None, radius, coupled)


class _Box(torch.autograd.Function):
    """Its own transpose; autograd's way back through slices would copy a map for each shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int, coupled: bool) -> Tensor:
        ctx.shape = radius, coupled
        return _box_rows(None, _box_columns(x, radius, coupled), None, radius, coupled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _box(gradient, *ctx.shape), None, None
