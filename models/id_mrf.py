"""GMCNN's losses (Wang et al., NeurIPS 2018): ID-MRF, and the confidence of its reconstruction.

Pure functions, computed in float32; each image by itself, then the mean over the batch. The
reconstruction is `losses.l1(…, confidence(mask), per=mask)`; the release adds the known region's
mean. The authors' weights of both are for images in [−1, 1].

Where the paper and the authors' code differ, `form` and `sigma` say which. Further decisions
- ID-MRF: roles of generated and target patches as in the paper and in PyTorch (the release in
  TensorFlow exchanges them); features centered by the target's mean over space; mean over the
  batch, where the PyTorch release sums. On conv3_2 and twice on conv4_2 of VGG19 (the names in
  the PyTorch release select conv3_1 and conv4_1).
- confidence: the border is reflected, as in PyTorch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import one_of, without_autocast

FORMS = ("released", "paper")
BANDWIDTH = 0.5  # h of the paper
EPSILON = 1e-5


def id_mrf(
    features: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float], form: str
) -> Tensor:
    """Weighted sum over maps of −log mean_s max_v R̄S(v, s), the mean over images.

    features, targets: N×C×H×W maps of the generated and of the original image; v and s are their
        positions. R̄S is RS, normalized over s for each v:
    form: "paper"     RS(v, s) = exp((μ(v, s) / (max_{r≠s} μ(v, r) + ε)) / h), μ the cosine
          "released"  RS(v, s) = exp((1 − d(v, s) / (min_r d(v, r) + ε)) / h), d = (1 − μ) / 2

    "released" (the contextual loss of Mechrez et al. 2018) is 0 for identical maps. Gradients go to
    `features` only. Memory: (H·W)² floats for each image and map, a few times.
    """
    one_of("form", form, FORMS)
    terms = [
        weight * _diversity(ours, theirs.detach(), form)
        for ours, theirs, weight in zip(features, targets, weights, strict=True)
    ]
    return torch.stack(terms).sum()


def _diversity(ours: Tensor, theirs: Tensor, form: str) -> Tensor:
    with without_autocast(ours):
        dtype = torch.promote_types(ours.dtype, torch.float32)
        v, s = ours.flatten(2).to(dtype), theirs.flatten(2).to(dtype)
        center = s.mean(2, keepdim=True)
        v, s = F.normalize(v - center, dim=1), F.normalize(s - center, dim=1)
        cosine = v.transpose(1, 2) @ s  # N×v×s
        if form == "paper":
            relative = cosine / (_largest_other(cosine) + EPSILON)
        else:
            distance = (1 - cosine) / 2
            relative = 1 - distance / (distance.amin(2, keepdim=True) + EPSILON)
        similarity = (relative / BANDWIDTH).softmax(2)
        return -similarity.amax(1).mean(1).log().mean()


def _largest_other(x: Tensor) -> Tensor:
    """For each element the largest of the others in its row."""
    values, places = x.topk(2, 2)
    is_first = torch.arange(x.shape[2], device=x.device) == places[..., :1]
    return torch.where(is_first, values[..., 1:], values[..., :1])


def confidence(mask: Tensor, size: int = 65, rounds: int = 7, sigma: float = math.inf) -> Tensor:
    """Confidence of hole pixels, N×1×H×W float32: 0 where known, falling from a hole's border.

    rounds times M ← (g ∗ (1 − m + M)) ⊙ m, from M = 0, with a Gaussian g of size×size (odd, below
    2·H and 2·W). sigma: its deviation in pixels; the paper says 40, but the kernel of both releases
    is constant (a deviation of 1/40 in the place of its inverse), which infinity stands for.
    """
    m = mask.float()
    offsets = torch.arange(size, device=m.device, dtype=m.dtype) - size // 2
    g = (-(offsets**2) / (2 * sigma**2)).exp()
    g = g / g.sum()
    filled = 1 - m
    with without_autocast(m):
        for _ in range(rounds):
            x = F.pad(filled, (size // 2,) * 4, mode="reflect")
            x = F.conv2d(F.conv2d(x, g.view(1, 1, -1, 1)), g.view(1, 1, 1, -1))
            filled = torch.where(mask > 0, x, 1)
    return filled * m
