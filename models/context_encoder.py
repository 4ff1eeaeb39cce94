"""Context Encoder: feature learning by inpainting (Pathak et al., CVPR 2016).

An encoder of 4×4 convolutions of stride 2 down to 4×4 cells, a bottleneck, and a decoder that
mirrors it. The network is that of the authors' code, with which their inpainting results are made
(the paper draws AlexNet with a channel-wise fully connected layer, for feature learning):

    levels=5, output="center"   128×128 → its middle 64×64; the hole is the middle 56×56, so that
                                4 pixels at each side overlap what is known (train.lua)
    levels=6, output="whole"    256×256, holes of any shape: train_random.lua with one level more

The paper does not say, and the authors' code has
- holes that hold one color, whose red and blue are exchanged; no mask channel.
- no biases in effect (each closure sets them to 0), batch norms; [−1, 1] inside, behind a tanh.
- weights from N(0, 0.02), scales of norms N(1, 0.02).

Batch norm at a single cell needs two images or more for each process in training.
"""

import torch
from torch import Tensor, nn

from .layers import Prediction, initialize, one_of, scaled
from .masking import check_pair

FILL = (117, 104, 123)  # RGB of 255
OUTPUTS = ("whole", "center")


def middle(x: Tensor) -> Tensor:
    """The middle half of N×C×H×W, in both directions: what output="center" predicts."""
    height, width = x.shape[2:]
    return x[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4]


def overlap_l2(prediction: Tensor, image: Tensor, mask: Tensor, overlap: float = 10.0) -> Tensor:
    """Mean of w·Δ², w = 1 in the hole and `overlap` where the image is known.

    For output="center" on the middle of each. The authors' weights are for images in [−1, 1].
    """
    weights = torch.where(mask > 0, 1.0, overlap)
    return (weights * (prediction.float() - image.float()).square()).mean()


def _down(in_channels: int, out_channels: int, stride: int = 2, norm: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 4, stride, stride // 2, bias=False),
        nn.BatchNorm2d(out_channels) if norm else nn.Identity(),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _up(in_channels: int, out_channels: int, stride: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, stride, stride // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ContextEncoder(nn.Module):
    """The generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features;
    with output="center" the image is gray around its middle. H and W must be multiples of
    `multiple` and at least `smallest`.
    """

    fill: Tensor

    def __init__(
        self,
        *,
        width: float = 1.0,
        levels: int = 6,
        output: str = "whole",
        bottleneck: int = 4000,
    ) -> None:
        """
        width: multiplies every width (never below 4), the bottleneck's too.
        levels: halvings before the bottleneck, at least 4; 6 take 256×256 to 4×4, 4 take 64×64.
        output: whole or center.
        bottleneck: its width.
        """
        super().__init__()
        self.center = one_of("output", output, OUTPUTS) == "center"
        if levels < 4:
            raise ValueError(f"levels={levels}; expected at least 4: 64×64 to the bottleneck's 4×4")
        self.multiple, self.smallest = 2**levels, 4 * 2**levels
        wide = [scaled(c, width) for c in (*[64] * (levels - 3), 128, 256, 512)]
        deep = scaled(bottleneck, width)
        self.encoder = nn.Sequential(_down(3, wide[0], norm=False))  # e1
        for a, b in zip(wide, wide[1:]):
            self.encoder.append(_down(a, b))
        self.encoder.append(_down(wide[-1], deep, stride=1))  # e6: 4×4 cells to one
        back = wide[:0:-1] if self.center else wide[::-1]
        self.decoder = nn.Sequential(_up(deep, back[0], stride=1))  # d1: one cell to 4×4
        for a, b in zip(back, back[1:]):
            self.decoder.append(_up(a, b))
        self.decoder.append(nn.ConvTranspose2d(back[-1], 3, 4, 2, 1, bias=False))
        self.register_buffer("fill", torch.tensor(FILL).view(3, 1, 1) / 255, persistent=False)
        initialize(self, "normal")

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        x = torch.where(mask.bool(), self.fill, erased) * 2 - 1
        x = torch.tanh(self.decoder(self.encoder(x)).float())
        if self.center:
            bottom, right = erased.shape[2] // 4, erased.shape[3] // 4
            x = nn.functional.pad(x, (right, right, bottom, bottom))
        return Prediction((x + 1) / 2, {})
