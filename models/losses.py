"""Losses of both papers as pure functions: computed in float32, a scalar, mean over the batch.

MSA-Net eq. 11–16 and MUSICAL eq. 4–6. MSA-Net prints eq. 11 and 12 with a root, ‖·‖₂ / (W·H·C);
we take the mean square: only so do its weights 1, 0.001 and 250 bring the terms to one range, as
the authors say they do.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import one_of, without_autocast

KINDS = ("vanilla", "lsgan")
DISTANCES = ("l1", "l2")


def l1(prediction: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean |Δ| over all pixels; with `where` (N×1×H×W), mean of |Δ| · where over all pixels."""
    difference = (prediction.float() - target.float()).abs()
    return difference.mean() if where is None else (difference * where).mean()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean square difference (MSA-Net eq. 11)."""
    return F.mse_loss(prediction.float(), target.float())


def perceptual(
    features: Sequence[Tensor], targets: Sequence[Tensor], distance: str = "l2"
) -> Tensor:
    """Sum over maps of the mean distance: "l2" is MSA-Net eq. 12, "l1" MUSICAL eq. 4.

    Gradients go to `features` only.
    """
    measure = l2 if one_of("distance", distance, DISTANCES) == "l2" else l1
    return _total(measure(ours, theirs.detach()) for ours, theirs in _pairs(features, targets))


def gram(feature: Tensor) -> Tensor:
    """Gram matrices of N×C×H×W maps over C·H·W: N×C×C float32 (MSA-Net eq. 13–15, MUSICAL 5–6).

    Scaled inside the product, which in half precision would overflow before a division.
    """
    n, channels, height, width = feature.shape
    x = feature.float()
    # Each view needs no copy in its own memory format.
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        rows = x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
    else:
        rows = x.flatten(2)
    with without_autocast(x):
        zeros = x.new_zeros(n, channels, channels)
        scale = 1 / (channels * height * width)
        return torch.baddbmm(zeros, rows, rows.transpose(1, 2), beta=0, alpha=scale)


def style(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over maps of the mean |difference of Gram matrices| (MSA-Net eq. 15, MUSICAL eq. 5)."""
    return _total(
        l1(gram(ours), gram(theirs.detach())) for ours, theirs in _pairs(features, targets)
    )


def tv(image: Tensor) -> Tensor:
    """Total variation: mean |difference| of horizontal plus of vertical neighbors."""
    x = image.float()
    return l1(x[..., :, 1:], x[..., :, :-1]) + l1(x[..., 1:, :], x[..., :-1, :])


def adversarial_generator(logits: Tensor, kind: str) -> Tensor:
    """Distance of the discriminator's `logits` of fakes from "real", over its whole map."""
    return _judged(logits, 1.0, kind)


def adversarial_discriminator(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Mean of the distances of real logits from "real" and of fake logits from "fake"."""
    return (_judged(real, 1.0, kind) + _judged(fake, 0.0, kind)) / 2


def _judged(logits: Tensor, label: float, kind: str) -> Tensor:
    """vanilla: binary cross-entropy with logits (Goodfellow 2014); lsgan: squares (Mao 2017)."""
    x = logits.float()
    target = torch.full_like(x, label)
    if one_of("gan", kind, KINDS) == "lsgan":
        return F.mse_loss(x, target)
    with without_autocast(x):
        return F.binary_cross_entropy_with_logits(x, target)


def _pairs(features: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    assert len(features) == len(targets) > 0, (len(features), len(targets))
    return list(zip(features, targets))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
