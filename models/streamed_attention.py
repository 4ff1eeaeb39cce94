"""Contextual attention's products and pastes, for the queries near holes, block by block.

Image by image, in the smallest window of queries that its hole needs, cut into blocks of grid
rows that stay in a CPU's cache (`patch_scores.py`). Only features are kept for the backward pass,
which computes the forward blocks again.

Floor for one image with h hole cells, q queries in its window and N keys of C channels: 2·q·N·C
FLOP for the scores and 2·h·N·C for each patch size's paste; backward twice that and the scores
again. Bytes: features, pasted maps and their gradients, a few times 4·N·C; blocks stay in cache.

`torch.export` cannot take a loop over data-dependent blocks: it gets the same stages over one block
that spans all rows that any image of the batch needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .patch_scores import Order, Scale, box, fork, overlap

BLOCK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}  # of one block; about twenty are alive


@torch.compiler.disable  # a compiled network calls it eagerly, between its graphs
def attend(
    order: Order,
    propagation: int,
    features: Tensor,
    keys: Tensor,
    wanted: Tensor,
    scales: Sequence[Scale],
) -> list[Tensor]:
    """Per scale `features` (n×C×H×W) with the means of pasted patches where `wanted` (n×H×W bool).

    keys: n×C×h×v, on a grid of their own. Gradients of every float tensor.
    """
    if torch.compiler.is_exporting():
        return _in_one_block(order, propagation, features, keys, wanted, scales)
    radii = [scale.radius for scale in scales]
    reach, least = 2 * max(radii) + propagation, max(*radii, propagation)
    row_bytes = keys[0, 0].numel() * keys.element_size()
    queries = BLOCK_BYTES.get(keys.device.type, BLOCK_BYTES["cuda"]) // row_bytes
    windows = [window_of(w, reach, queries, least) for w in wanted]
    terms = [term for scale in scales for term in scale[1:]]
    return list(_Streamed.apply(order, propagation, radii, windows, features, keys, *terms))


class Window(NamedTuple):
    """The grid of queries that an image's hole needs, in blocks of rows [start, stop).

    picks: for each block, the places of its hole cells within it; cells: within the whole map.
    """

    columns: slice
    blocks: list[slice]
    picks: list[Tensor]
    cells: list[Tensor]


def window_of(wanted: Tensor, reach: int, queries: int, least: int) -> Window | None:
    """The window of `wanted` (H×W bool) widened by `reach`; None where nothing is wanted.

    queries: how many a block may hold; a block has at least `least` grid rows anyway.
    """
    device, wanted = wanted.device, wanted.cpu()
    height, width = wanted.shape
    rows, columns = wanted.any(1).nonzero()[:, 0], wanted.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    top, bottom = max(0, int(rows[0]) - reach), min(height, int(rows[-1]) + reach + 1)
    left, right = max(0, int(columns[0]) - reach), min(width, int(columns[-1]) + reach + 1)
    step = max(least, 1, queries // (right - left))
    blocks = [slice(y, min(y + step, bottom)) for y in range(top, bottom, step)]
    picks, cells = [], []
    for block in blocks:
        y, x = wanted[block, left:right].nonzero(as_tuple=True)
        picks.append((y * (right - left) + x).to(device))
        cells.append(((y + block.start) * width + x + left).to(device))
    return Window(slice(left, right), blocks, picks, cells)


class ImageWindow:
    """One image's features in its window: the streams of its scores, pastes and gradients."""

    def __init__(
        self,
        window: Window,
        order: Order,
        propagation: int,
        features: Tensor,
        keys: Tensor,
        scales: Sequence[Scale],
    ) -> None:
        """features: C×H×W. keys: C×h×v. The scales' terms: H×W and h×v."""
        self.window, self.order, self.propagation, self.scales = window, order, propagation, scales
        self.grid = keys.shape[1:]
        self.features = features.permute(1, 2, 0)
        self.keys = keys.flatten(1)

    def queries(self, block: slice) -> Tensor:
        """The block's features, (g·w)×C."""
        return self.features[block, self.window.columns].flatten(0, 1)

    def scores(self) -> list[Iterator[Tensor]]:
        """The dot products, block by block; one stream for each scale, computed once."""
        width = self.window.columns.stop - self.window.columns.start
        products = (self.queries(block) @ self.keys for block in self.window.blocks)
        blocks = (p.view(1, -1, width, *self.grid) for p in products)
        return fork(blocks, len(self.scales))

    def terms(self, scale: Scale) -> list[Scale]:
        """The scale's terms for each block, ready to broadcast."""
        return [
            Scale(
                scale.radius,
                scale.query[None, block, self.window.columns, None, None],
                scale.key[None, None, None],
                scale.closed[None, None, None],
                scale.counted[None, None, None],
            )
            for block in self.window.blocks
        ]

    def paste(self, outputs: Sequence[Tensor]) -> None:
        """Write each scale's pasted patches to the hole's cells of its C×(H·W) output."""
        streams = []
        for scale, scores in zip(self.scales, self.scores()):
            patches = box(scores, scale.radius)
            weights = self.order.weigh(patches, self.terms(scale), self.propagation)
            streams.append(box((w.weight for w in weights), scale.radius))
        for pick, cells, *blocks in zip(self.window.picks, self.window.cells, *streams):
            for block, output, scale in zip(blocks, outputs, self.scales):
                rows = _matrix(block)[pick]
                pasted = rows @ self.keys.t()
                output.index_copy_(1, cells, pasted.div_(overlap(rows, scale)).t())

    def paste_backward(
        self, gradients: Sequence[Tensor], features: Tensor, keys: Tensor, terms: Sequence[Scale]
    ) -> None:
        """Add to the gradients of features (H×W×C), keys (C×h·v) and terms.

        gradients: of each scale's pasted cells, C×(H·W).
        """
        columns = self.window.columns

        def through_paste(
            blocks: Iterable[Tensor], scale: Scale, gradient: Tensor
        ) -> Iterator[Tensor]:
            for block, pick, cells in zip(blocks, self.window.picks, self.window.cells):
                rows = _matrix(block)[pick]
                total = overlap(rows, scale)
                g = gradient.index_select(1, cells).t() / total
                keys.addmm_(g.t(), rows)
                of_rows = g @ self.keys
                if scale.filled is not None:  # through the division by the total weight
                    inner = torch.linalg.vecdot(of_rows, rows)[:, None] / total
                    of_rows.addmm_(inner, scale.filled.flatten()[None], alpha=-1)
                of_block = torch.zeros_like(_matrix(block))
                yield of_block.index_copy_(0, pick, of_rows).view_as(block)

        def through_scale(
            scores: Iterable[Tensor], scale: Scale, gradient: Tensor, term: Scale
        ) -> Iterator[Tensor]:
            patches = box(scores, scale.radius)
            weights = self.order.weigh(patches, self.terms(scale), self.propagation)
            here, later = fork(weights)
            pasted = through_paste(box((w.weight for w in here), scale.radius), scale, gradient)
            scored = self.order.unweigh(later, box(pasted, scale.radius), self.propagation)
            kept, spread = fork(scored)
            for block, g, score in zip(
                self.window.blocks, kept, box((g.score for g in spread), scale.radius)
            ):
                term.key.add_(g.key[0])
                if g.query is not None:
                    term.query[block, columns] = g.query[0]
                yield score

        streams = map(through_scale, self.scores(), self.scales, gradients, terms)
        for block, first, *others in zip(self.window.blocks, *streams):
            score = _matrix(sum(others, first))
            queries = features[block, columns]
            queries += (score @ self.keys.t()).view_as(queries)
            keys.addmm_(self.queries(block).t(), score)


def _matrix(block: Tensor) -> Tensor:
    """1×g×w×h×v as (g·w)×(h·v)."""
    return block.flatten(3).flatten(0, 2)


class _Streamed(torch.autograd.Function):
    """`attend` image by image; saves only its inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        order: Order,
        propagation: int,
        radii: list[int],
        windows: list[Window | None],
        features: Tensor,
        keys: Tensor,
        *terms: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(features, keys, *terms)
        ctx.plan = order, propagation, radii, windows
        outputs = tuple(features.clone(memory_format=torch.contiguous_format) for _ in radii)
        for i, window in enumerate(windows):
            if window is not None:
                scales = _scales(radii, terms, i)
                image = ImageWindow(window, order, propagation, features[i], keys[i], scales)
                image.paste([output[i].flatten(1) for output in outputs])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, propagation, radii, windows = ctx.plan
        features, keys, *terms = ctx.saved_tensors
        # Gradients of known cells pass unchanged.
        of_blend = torch.stack(gradients).sum(0).contiguous()
        of_features = torch.zeros_like(features.permute(0, 2, 3, 1)).contiguous()
        of_keys = torch.zeros_like(keys.flatten(2), memory_format=torch.contiguous_format)
        of_terms = [
            None if t is None else torch.zeros_like(t, memory_format=torch.contiguous_format)
            for t in terms
        ]
        for i, window in enumerate(windows):
            if window is not None:
                scales = _scales(radii, terms, i)
                image = ImageWindow(window, order, propagation, features[i], keys[i], scales)
                for cells in window.cells:
                    of_blend[i].flatten(1).index_fill_(1, cells, 0)
                image.paste_backward(
                    [g[i].flatten(1) for g in gradients],
                    of_features[i],
                    of_keys[i],
                    _scales(radii, of_terms, i),
                )
        of_features = of_blend.add_(of_features.permute(0, 3, 1, 2))
        return (None, None, None, None, of_features, of_keys.view(keys.shape), *of_terms)


def _scales(radii: Sequence[int], terms: Sequence[Tensor | None], i: int) -> list[Scale]:
    """The scales of image i, from the flat list of all their terms."""
    own = [None if t is None else t[i] for t in terms]
    count = len(own) // len(radii)
    return [
        Scale(radius, *own[s * count : (s + 1) * count])  # type: ignore[arg-type]
        for s, radius in enumerate(radii)
    ]


def _in_one_block(
    order: Order,
    propagation: int,
    features: Tensor,
    keys: Tensor,
    wanted: Tensor,
    scales: Sequence[Scale],
) -> list[Tensor]:
    """`attend` as one graph over all rows that any image of the batch needs."""
    n, channels, height, width = features.shape
    radius = max(scale.radius for scale in scales)
    reach = 2 * radius + propagation
    rows = torch.arange(height, device=features.device)
    used = wanted.any(2).any(0)
    least = max(radius, propagation) + 1  # more than any shift, whatever the hole
    bottom = torch.where(used, rows + reach + 1, least).max().clamp(max=height)
    top = torch.where(used, rows - reach, height).min().clamp(min=0)
    top = torch.minimum(top, bottom - least)
    start, count = top.item(), (bottom - top).item()
    torch._check(start >= 0)
    torch._check(count >= least)
    torch._check(start + count <= height)
    queries = features.narrow(2, start, count).flatten(2).transpose(1, 2)  # type: ignore[arg-type]
    scores = (queries @ keys.flatten(2)).view(n, count, width, *keys.shape[2:])  # type: ignore[arg-type]
    outputs = []
    for scale in scales:
        terms = scale._replace(
            query=scale.query.narrow(1, start, count)[..., None, None],  # type: ignore[arg-type]
            key=scale.key[:, None, None],
            closed=scale.closed[:, None, None],
            counted=scale.counted[:, None, None],
        )
        weights = order.weigh(box([scores], scale.radius), [terms], propagation)
        (block,) = box((w.weight for w in weights), scale.radius)
        rows = block.flatten(3).flatten(1, 2)
        pasted = rows @ keys.flatten(2).transpose(1, 2) / overlap(rows, scale)
        pasted = pasted.view(n, count, width, channels).permute(0, 3, 1, 2)  # type: ignore[arg-type]
        where = torch.arange(count, device=features.device) + start
        filled = torch.zeros_like(features).index_copy(2, where, pasted)
        outputs.append(torch.where(wanted[:, None], filled, features))
    return outputs
