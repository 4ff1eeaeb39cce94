"""Contextual attention: fill holes with known patches (MUSICAL eq. 1–3, fig. 2).

Wang, Li, Zhang, Du: MUSICAL, IJCAI 2019; after Yu et al. 2018 (DeepFill).

Exact, with another hole per image, and without cutting out any patch. With D[q, t] = ⟨f_q, b_t⟩
the one dot-product map of all patch sizes (q a cell of the map, t a known cell) and
    box(M, r)[q, t] = Σ_{|i|,|j| ≤ r} M[q + (i, j), t + (i, j)], zero outside,
the scores of patches are box(D, r), propagation (eq. 2) is box(A, k), and pasting overlapping
patches is box(W, r) b. `streamed_attention.py` computes that for the rows near holes only,
`batched_attention.py` on a GPU for a whole batch.

The paper does not say
- the temperature λ of the softmax. With cosines and λ = 1 it is flat (1,016 of 1,023 keys count);
  10, as DeepFill.
- which keys count: those whose window holds no hole; if there are none, known cells; an image
  without known cells is returned unchanged.
- that scores are normalized again after propagation: they are (else they add up to nine), over
  the keys that may be copied (`renormalize`): propagation moves weight to keys in holes, whose
  patches are zeros. A pasted cell is the mean over the values that patches really have there, so
  that neither holes nor the map's border darken it.
- what happens to known cells: they keep their input (`blend`), as in both codes.
- the width inside squeeze-and-excitation: as wide as its input, as released.

The orders, and where they differ
  paper     cosine · λ → softmax → propagate → renormalize → paste raw patches
  released  query · normalized key → propagate over queries alone → softmax → paste normalized
            patches; holes are keys too, each the same constant vector (the authors' code)
  yu        query · normalized key on every second cell → propagate over flattened indices → softmax
            → paste raw 4×4 patches at stride 2 (DeepFill's code: `strided_attention.py`)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import batched_attention
from .attention import SqueezeExcitation
from .layers import one_of, without_autocast
from .masking import check_size
from .patch_scores import PAPER, RELEASED, Scale
from .streamed_attention import attend
from .strided_attention import attend_strided

ORDERS = {"paper": PAPER, "released": RELEASED}
KEYS = ("window", "cell", "all")
RENORMALIZE = ("copyable", "all")
BLENDS = ("hole", "none")
FLOOR = 1e-7  # of norms in `paper`; added to every key in `released`, which has no other floor


def contextual_attention(
    features: Tensor,
    mask: Tensor,
    patches: Sequence[int] = (1, 3),
    *,
    order: str = "paper",
    temperature: float = 10.0,
    propagation: int = 1,
    keys: str = "window",
    renormalize: str = "copyable",
    blend: str = "hole",
) -> list[Tensor]:
    """Fill the holes of `features` from known patches, once for each patch size.

    features: N×C×H×W, any float dtype; computed in float32 at least and returned so.
    mask: N×1×h×w, 1 = hole, any size (resized by nearest neighbor), another for each image.
    patches: odd sizes of square patches. propagation: k of eq. 2, 0 for none.
    order: paper, released or yu, whose features have even sides.
    temperature: λ, of the orders `paper` and `yu`; `released` has none.
    keys: known patches that may be copied: "window", those without any hole cell, "cell", those
        whose center is known, "all", everything. `released` always takes everything.
    renormalize: keys whose weights add up to 1 in the order `paper`: "copyable", those that may be
        copied, or "all", as in runs of earlier versions, whose filled cells are darker: weight on
        holes and beyond the border counts as copies of zeros.
    blend: "hole" puts the result into the hole alone; "none" replaces every cell.
    """
    orders = (*ORDERS, "yu")
    _check_options(patches, order, temperature, propagation, renormalize, orders)
    one_of("keys", keys, KEYS)
    one_of("blend", blend, BLENDS)
    if (
        (features.ndim, mask.ndim) != (4, 4)
        or mask.shape[:2] != (features.shape[0], 1)
        or mask.device != features.device
    ):
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} on {mask.device} does not match features of shape "
            f"{tuple(features.shape)} on {features.device}; expected N×1×h×w for N×C×H×W, on the "
            "same device"
        )
    f = features if features.dtype == torch.float64 else features.float()
    with without_autocast(f):
        hole = F.interpolate(mask.to(f.dtype), f.shape[2:], mode="nearest")[:, 0] > 0.5
        some_known = (~hole).any(2).any(1)[:, None, None]
        wanted = (hole if blend == "hole" else torch.ones_like(hole)) & some_known
        radii = [p // 2 for p in patches]
        if order == "yu":
            check_size(f, 2, 2)
            size = (f.shape[2] // 2, f.shape[3] // 2)
            hole = F.interpolate(mask.to(f.dtype), size, mode="nearest")[:, 0] > 0.5
            pasted = [
                attend_strided(f, _refused(hole, r, keys), r, temperature, propagation)
                for r in radii
            ]
            return [torch.where(wanted[:, None], x, f).to(features.dtype) for x in pasted]
        known = f.masked_fill(hole.unsqueeze(1), 0)
        if order == "paper":
            scales = [
                _paper_scale(f, known, hole, r, temperature, keys, renormalize) for r in radii
            ]
        else:
            known = F.pad(known, (max(radii),) * 4) + FLOOR
            scales = [_released_scale(f, known, r, max(radii)) for r in radii]
        fill = batched_attention.attend_batched if batched_attention.fits(f, known) else attend
        filled = fill(ORDERS[order], propagation, f, known, wanted, scales)
    return [x.to(features.dtype) for x in filled]


def _check_options(
    patches: Sequence[int],
    order: str,
    temperature: float,
    propagation: int,
    renormalize: str,
    orders: Sequence[str] = tuple(ORDERS),
) -> None:
    one_of("order", order, orders)
    one_of("renormalize", renormalize, RENORMALIZE)
    fine = patches and all(p > 0 and p % 2 for p in patches)
    if not (fine and 0 < temperature < float("inf") and propagation >= 0):
        raise ValueError(
            f"temperature={temperature:g}, propagation={propagation}, patches={list(patches)}; "
            "expected a temperature above 0, a propagation of 0 or more, odd patch sizes"
        )


def window_sum(x: Tensor, radius: int) -> Tensor:
    """Sum over (2·radius + 1)² windows of N×H×W maps, zero beyond the border."""
    return F.avg_pool2d(x[:, None], 2 * radius + 1, 1, radius, divisor_override=1)[:, 0]


def _refused(hole: Tensor, radius: int, keys: str) -> Tensor:
    """Keys that may not be copied, N×H×W bool like `hole`; never all of an image's."""
    near_hole = F.max_pool2d(hole.float(), 2 * radius + 1, 1, radius) > 0
    refused = {"window": near_hole, "cell": hole, "all": torch.zeros_like(hole)}[keys]
    for fallback in (hole, torch.zeros_like(hole)):
        everywhere = refused.all(2).all(1)[:, None, None]
        # Not torch.where: onnxruntime has none for bool.
        refused = refused & ~everywhere | fallback & everywhere
    return refused


def _paper_scale(
    f: Tensor,
    known: Tensor,
    hole: Tensor,
    radius: int,
    temperature: float,
    keys: str,
    renormalize: str,
) -> Scale:
    def norms(x: Tensor) -> Tensor:
        return window_sum(x.square().sum(1), radius).clamp(min=FLOOR**2).sqrt()

    refused = _refused(hole, radius, keys)
    closed = torch.zeros_like(f[:, 0]).masked_fill(refused, -torch.inf)
    terms = radius, temperature / norms(f), 1 / norms(known), closed
    if renormalize == "all":
        return Scale(*terms, torch.ones_like(closed))
    with_value = torch.ones_like(hole) if keys == "all" else ~hole
    return Scale(*terms, (~refused).to(f.dtype), with_value.to(f.dtype))


def _released_scale(f: Tensor, known: Tensor, radius: int, border: int) -> Scale:
    """`known` has a border of cells, parts of keys' patches but themselves no keys."""
    norms = window_sum(known.square().sum(1), radius).sqrt()
    closed = F.pad(torch.zeros_like(f[:, 0]), (border,) * 4, value=-torch.inf)
    return Scale(radius, torch.ones_like(f[:, 0]), 1 / norms, closed, torch.ones_like(closed))


class MultiScaleAttention(nn.Module):
    """Eq. 3, fig. 2: attention at several patch sizes, weighed by squeeze-and-excitation, merged.

    N×C×H×W with masks N×1×h×w → N×C×H×W, so that it drops into any network:

        attention = MultiScaleAttention(channels)
        x = attention(x, mask)      # between any two layers whose maps hold the hole

    order "paper": conv1×1(SE([f, att…])). "released": conv3×3([f, conv1×1(SE([att…]))]);
    `direct`, of one patch size: conv3×3([f, att]).
    """

    def __init__(
        self,
        channels: int,
        patches: Sequence[int] = (1, 3),
        order: str = "paper",
        temperature: float = 10.0,
        propagation: int = 1,
        renormalize: str = "copyable",
        direct: bool = False,
    ) -> None:
        super().__init__()
        _check_options(patches, order, temperature, propagation, renormalize)
        if direct and (order == "paper" or len(patches) > 1):
            raise ValueError(
                f"order={order} with patches={list(patches)} cannot be direct, which is of the "
                "order released and of one patch size: choose order=released and one size"
            )
        self.patches, self.order = tuple(patches), order
        self.temperature, self.propagation = temperature, propagation
        self.renormalize = renormalize
        wide = channels * (len(self.patches) + (order == "paper"))
        if not direct:
            self.excite = SqueezeExcitation(wide, hidden=wide)
            self.merge = nn.Conv2d(wide, channels, 1)
        self.direct = direct
        self.join = None if order == "paper" else nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        filled = contextual_attention(
            x,
            mask,
            self.patches,
            order=self.order,
            temperature=self.temperature,
            propagation=self.propagation,
            renormalize=self.renormalize,
        )
        if self.join is None:
            return self.merge(self.excite(torch.cat((x, *filled), 1)))
        merged = filled[0] if self.direct else self.merge(self.excite(torch.cat(filled, 1)))
        return self.join(torch.cat((x, merged.to(x.dtype)), 1))
