"""Canny's edges in torch, batched: those of scikit-image's `feature.canny`, pixel for pixel.

Canny 1986, as scikit-image has it: Gaussian smoothing of the known pixels alone, Sobel gradients,
bilinear non-maximum suppression, hysteresis. Written as shifted sums, which no TF32 rounds.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import without_autocast

LUMA = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray
TRUNCATE = 4.0  # radius of the Gaussian, in σ
ROUNDS = 128  # of hysteresis in an exported graph and on a GPU, which do not loop until stable


def grayscale(image: Tensor) -> Tensor:
    """N×3×H×W → N×1×H×W."""
    red, green, blue = image.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


@torch.no_grad()
def canny(
    gray: Tensor,
    known: Tensor | None = None,
    sigma: float = 2.0,
    low: float = 0.1,
    high: float = 0.2,
) -> Tensor:
    """Edges (1, else 0) of N×1×H×W in [0, 1], in the input's dtype, computed in float64.

    known: N×1×H×W, 1 = known; edges lie where the pixel and its neighbors are. None: all.
    low, high: thresholds of the gradient's magnitude for weak and strong edges.
    """
    with without_autocast(gray):
        x = gray.double()
        known = torch.ones_like(x) if known is None else known.to(x.dtype)
        x = _blur(x.masked_fill(known == 0, 0), sigma)
        # What bled in from unknown pixels is divided out.
        x = x / (_blur(known, sigma) + torch.finfo(x.dtype).eps)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        taps = ((-1, 1), (0, 2), (1, 1))  # Sobel
        down = sum(c * (_at(padded, 1, i) - _at(padded, -1, i)) for i, c in taps)
        right = sum(c * (_at(padded, i, 1) - _at(padded, i, -1)) for i, c in taps)
        inside = -F.max_pool2d(F.pad(-known, (1, 1, 1, 1)), 3, 1) > 0
        magnitude = (down.square() + right.square()).sqrt()  # type: ignore[union-attr]
        edge = inside & (magnitude >= low) & _is_ridge(down, right, magnitude)  # type: ignore[arg-type]
        strong = edge & (magnitude >= high)
        return _connected(strong.to(gray.dtype), edge.to(gray.dtype))


def _at(padded: Tensor, down: int, right: int) -> Tensor:
    """The map that was padded by 1, each pixel's neighbor in its place."""
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian, zero beyond the border."""
    radius = int(TRUNCATE * sigma + 0.5)
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(x, pad), x.shape[dim]
        x = torch.zeros_like(x)
        for i, tap in enumerate(taps):
            x += padded.narrow(dim, i, size) * (tap / math.fsum(taps))
    return x


def _is_ridge(down: Tensor, right: Tensor, magnitude: Tensor) -> Tensor:
    """Whether a magnitude is no less than those one step along and against the gradient.

    These are interpolated between the neighbor on the gradient's main axis and the diagonal one.
    """
    padded = F.pad(magnitude, (1, 1, 1, 1))
    steep, falling = down.abs() >= right.abs(), (down >= 0) == (right >= 0)
    small, large = (pick(down.abs(), right.abs()) for pick in (torch.minimum, torch.maximum))
    share = small / large  # NaN in flat areas, which are below any threshold
    ridge = torch.ones_like(steep)
    for i in (1, -1):
        vertical = torch.where(falling, _at(padded, i, 0), _at(padded, -i, 0))
        diagonal = torch.where(falling, _at(padded, i, i), _at(padded, -i, i))
        straight = torch.where(steep, vertical, _at(padded, 0, i))
        ridge &= diagonal * share + straight * (1 - share) <= magnitude
    return ridge


@torch.compiler.disable  # a compiled network calls it eagerly, between its graphs
def _connected(strong: Tensor, edge: Tensor) -> Tensor:
    """Hysteresis: the edges that hang together with a strong one (8 neighbors)."""
    if torch.compiler.is_exporting() or edge.device.type != "cpu":
        for _ in range(ROUNDS):
            strong = F.max_pool2d(strong, 3, 1, 1) * edge
        return strong
    while True:
        before = strong
        for _ in range(16):  # looking at every round costs as much as the round
            strong = F.max_pool2d(strong, 3, 1, 1) * edge
        if torch.equal(before, strong):
            return strong
