"""Losses of all methods as pure functions: computed in float32, a scalar, mean over the batch.

MSA-Net eq. 11–16 and MUSICAL eq. 4–6. MSA-Net prints eq. 11 and 12 with a root, ‖·‖₂ / (W·H·C);
we take the mean square: only so do its weights 1, 0.001 and 250 bring the terms to one range, as
the authors say they do. PConv's (eq. 3 to 8 of its paper) are `l1`, `perceptual`, `style` and `tv`
of its hole, known part and composite; EdgeConnect's feature matching is `perceptual` with "l1" over
its discriminator's maps; DeepFill's reconstruction is `l1` with `discount`.

Weights are quoted for images in [0, 1] here: authors who compute in [−1, 1] have twice the L1.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import one_of, without_autocast

KINDS = ("vanilla", "lsgan", "hinge", "wgan")
DISTANCES = ("l1", "l2")


def l1(
    prediction: Tensor, target: Tensor, where: Tensor | None = None, per: Tensor | None = None
) -> Tensor:
    """Mean |Δ| over all pixels; with `where` (N×1×H×W), mean of |Δ| · where over all pixels.

    per: N×1×H×W; each image's mean is divided by that of `per`, such as the share of its hole.
    """
    difference = (prediction.float() - target.float()).abs()
    if where is not None:
        difference = difference * where
    if per is None:
        return difference.mean()
    share = per.float().mean((1, 2, 3)).clamp(min=1 / per[0].numel())
    return (difference.mean((1, 2, 3)) / share).mean()


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


def tv(image: Tensor, where: Tensor | None = None) -> Tensor:
    """Total variation: mean |difference| of horizontal plus of vertical neighbors.

    where: N×1×H×W of zeros and ones; pairs count that both lie in it (PConv eq. 8: the hole, grown
    by a pixel), the mean is still over all.
    """
    x = image.float()
    across = None if where is None else where[..., :, 1:] * where[..., :, :-1]
    down = None if where is None else where[..., 1:, :] * where[..., :-1, :]
    return l1(x[..., :, 1:], x[..., :, :-1], across) + l1(x[..., 1:, :], x[..., :-1, :], down)


def hole_distance(mask: Tensor, reach: int = 64) -> Tensor:
    """Chessboard distance of hole pixels to the nearest known one, at most `reach`; 0 if known."""
    inside = distance = mask.float()
    for _ in range(reach - 1):
        inside = -F.max_pool2d(-inside, 3, 1, 1)
        distance = distance + inside
    return distance


def discount(mask: Tensor, gamma: float) -> Tensor:
    """DeepFill's spatial discount: gamma ** (distance − 1) in the hole, else 0.

    gamma: 0.9 in its code, 0.99 in its paper.
    """
    return mask * gamma ** (hole_distance(mask) - 1)


def adversarial_generator(logits: Tensor, kind: str) -> Tensor:
    """Distance of the discriminator's `logits` of fakes from "real", over its whole map.

    hinge and wgan (Miyato 2018, Arjovsky 2017): −mean.
    """
    if one_of("gan", kind, KINDS) in ("hinge", "wgan"):
        return -logits.float().mean()
    return _judged(logits, 1.0, kind)


def adversarial_discriminator(
    real: Tensor, fake: Tensor, kind: str, known: Tensor | None = None
) -> Tensor:
    """Mean of the distances of real logits from "real" and of fake logits from "fake".

    hinge and wgan: the sum of both, as their papers have it. known: of the shape of `fake`, 1 where
    that is to be judged real (LaMa); of the others.
    """
    if one_of("gan", kind, KINDS) == "hinge":
        return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
    if kind == "wgan":
        return fake.float().mean() - real.float().mean()
    return (_judged(real, 1.0, kind) + _judged(fake, 0.0 if known is None else known, kind)) / 2


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    noise: Tensor,
    where: Tensor | None = None,
    span: float = 2.0,
) -> Tensor:
    """WGAN-GP (Gulrajani 2017): mean (‖∇critic‖₂ − 1)² at fake + noise · (real − fake).

    critic: images in [0, 1] to one logit or more each, which are summed; called in float32.
    noise: N×1×1×1, uniform. where: N×1×H×W, multiplies the gradient (DeepFill: the hole).
    span: of the range that the critic judges in; 2 for [−1, 1], where slopes are half as steep.
    """
    with without_autocast(real):
        points = torch.lerp(fake.float(), real.float(), noise).detach().requires_grad_()
        # A view: what counts FLOP hooks the inputs of modules, and cannot hook a leaf here.
        judged = critic(points.view_as(points))
        (gradient,) = torch.autograd.grad(judged.sum(), points, create_graph=True)
        gradient = gradient / span if where is None else gradient / span * where
        slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return (slope - 1).square().mean()


def real_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1 (Mescheder 2018): mean ‖∇critic‖₂² at real images; called in float32."""
    with without_autocast(real):
        points = real.float().detach().requires_grad_()
        judged = critic(points.view_as(points))
        (gradient,) = torch.autograd.grad(judged.sum(), points, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()


def _judged(logits: Tensor, label: float | Tensor, kind: str) -> Tensor:
    """vanilla: binary cross-entropy with logits (Goodfellow 2014); lsgan: squares (Mao 2017)."""
    x = logits.float()
    target = label if isinstance(label, Tensor) else torch.full_like(x, label)
    if kind == "lsgan":
        return F.mse_loss(x, target)
    with without_autocast(x):
        return F.binary_cross_entropy_with_logits(x, target)


def _pairs(features: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    assert len(features) == len(targets) > 0, (len(features), len(targets))
    return list(zip(features, targets))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
