"""PConv: image inpainting for irregular holes using partial convolutions (Liu et al., ECCV 2018).

A U-Net of partial convolutions: each output is computed from the known pixels of its window alone
and scaled up by how few they are (eq. 1); it is known if any of them was (eq. 2).

The authors published the layer but no network. What the paper does not say
- the images' range: [−1, 1] inside. Weights: Kaiming. Levels at 256 pixels: 7 (the paper draws 8
  for 512), as both ports have it.
- which parts of a batch norm the second phase freezes ("the batch normalization parameters in the
  encoder"): its statistics, which holes disturb; scales and offsets go on learning.
The code (NVIDIA/partialconv) and we count padding as holes, so that the border is scaled up too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Prediction, initialize_for_relu, make_norm, scaled
from .masking import check_pair, erase

WIDTHS = (64, 128, 256, 512)  # and 512 for every level below
KERNELS = (7, 5, 5, 3)


def smooth_fill(image: Tensor, known: Tensor, levels: int, sweeps: int = 2) -> Tensor:
    """Fill holes smoothly: N×3×H×W and N×1×H×W (1 = known) → N×3×H×W, without gradient.

    Approximates the harmonic fill by one full multigrid pass: means of the known pixels of ever
    larger cells, then, from the coarsest of `levels` down, sweeps in which each pixel of the hole
    becomes the mean of its four neighbors. H and W must be multiples of 2 ** levels.
    """
    with torch.no_grad():
        pyramid = [(image * known, known)]
        for _ in range(levels):
            x, known = pyramid[-1]
            share = F.avg_pool2d(known, 2)
            known = (share > 0).to(share.dtype)
            pyramid.append((F.avg_pool2d(x, 2) / share.clamp(min=0.25), known))
        x, known = pyramid.pop()
        count = known.sum((2, 3), keepdim=True)
        fill = x + (1 - known) * x.sum((2, 3), keepdim=True) / count.clamp(min=1)
        for level in reversed(range(levels)):
            x, known = pyramid[level]
            fill = F.interpolate(fill, scale_factor=2.0, mode="bilinear", align_corners=False)
            fill = torch.where(known > 0, x, fill)
            for _ in range(sweeps << level):
                y = F.pad(fill, (1, 1, 1, 1), mode="replicate")
                mean = y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
                fill = torch.where(known > 0, x, mean / 4)
        return fill


class PartialConv(nn.Conv2d):
    """Eq. 1 and 2, on maps that each have one mask for all their channels.

    (N×Cᵢ×H×W, N×1×H×W known = 1), … → the same of all, N×out×H'×W'. In a window that sees the
    share s of its C·k² inputs, y = Wᵀ(x ⊙ M) / s + b, or 0 where s = 0. One box mean of
    Σ Cᵢ·Mᵢ / C equals the convolution of a mask for every channel.
    """

    def forward(self, *maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = torch.cat([x * known.to(x.dtype) for x, known in maps], 1)
        seen = sum(x.shape[1] * known for x, known in maps) / self.in_channels
        share = F.avg_pool2d(seen, self.kernel_size, self.stride, self.padding)  # type: ignore[arg-type]
        known = (share > 0).to(share.dtype)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding)
        y = y * (known / share.clamp(min=1e-6)).to(y.dtype)
        if self.bias is not None:
            y = y + self.bias[:, None, None] * known.to(y.dtype)
        return y, known


class Block(nn.Module):
    """Partial convolution, norm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        norm: str,
        leak: float,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = PartialConv(
            in_channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=bias
        )
        self.norm = make_norm(norm, out_channels)
        self.activate = nn.LeakyReLU(leak)

    def forward(self, *maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, known = self.conv(*maps)
        return self.activate(self.norm(x)), known


class PConv(nn.Module):
    """PConv's generator (table 1 of the supplement).

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features,
    whose image is not clipped. H and W must be multiples of `multiple`, at least `smallest`.
    """

    def __init__(
        self,
        *,
        levels: int = 7,
        width: float = 1.0,
        stem_bias: bool = False,
        fill: bool = False,
    ) -> None:
        """
        levels: how often the size is halved. width: multiplies every width.
        stem_bias: the first layer, which has no norm, has a bias, as MMagic's.
        fill: the output corrects a smooth fill of the holes, which the last skip connection holds
            in place of the erased image; not the paper's, for small networks.
        """
        super().__init__()
        self.fill = fill
        self.multiple, self.smallest = 2**levels, 2 * 2**levels
        widths = [3] + [scaled(WIDTHS[min(i, 3)], width) for i in range(levels)]
        self.encoder = nn.ModuleList(
            Block(
                widths[i],
                widths[i + 1],
                KERNELS[min(i, 3)],
                2,
                "batch" if i else "none",
                0.0,
                stem_bias and not i,
            )
            for i in range(levels)
        )
        self.decoder = nn.ModuleList(
            Block(widths[i + 1] + widths[i], widths[i], 3, 1, "batch", 0.2)
            for i in reversed(range(1, levels))
        )
        self.out = PartialConv(widths[1] + 3, 3, 3, padding=1)
        initialize_for_relu(self)
        if fill:
            nn.init.zeros_(self.out.weight)

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        image, known = erase(erased * 2 - 1, mask), 1 - mask.to(erased.dtype)
        here = (image, known)
        if self.fill:
            image = smooth_fill(image, known, len(self.encoder))
            skips = [(image, torch.ones_like(known))]
        else:
            skips = [here]
        for block in self.encoder:
            here = block(here)
            skips.append(here)
        skips.pop()
        for block in (*self.decoder, self.out):
            x, known = (F.interpolate(t, scale_factor=2.0, mode="nearest") for t in here)
            here = block((x, known), skips.pop())
        image = here[0] + image if self.fill else here[0]
        return Prediction((image.float() + 1) / 2, {})
