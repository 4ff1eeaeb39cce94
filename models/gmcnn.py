"""GMCNN: generative multi-column convolutional neural network (Wang et al., NeurIPS 2018).

Three columns see the whole image with kernels of 7, 5 and 3; each comes back to its size in its
own way, and two layers merge them. The network is that of the authors' PyTorch release, which has
the paper's 12.562 M weights; the release in TensorFlow differs in a few kernels and widths.

The paper does not say
- padding: by reflection, as released, so that the map must reach beyond the widest convolution.
- the weights' distribution: N(0, 0.02) as released; divided by √width, so that a narrow network,
  which has no norm, passes signals on as the wide one does.
- the range: [−1, 1] inside, clipped there; holes are 0, and the mask is a fourth channel.

Losses that belong to it: `id_mrf.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .columns import DILATIONS, column, smallest_image
from .layers import Prediction, initialize, scaled
from .masking import check_pair, erase

KERNELS = (7, 5, 3)


def _layer(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, padding_mode="reflect"
        ),
        nn.ELU(),
    )


def _bilinear(scale: int) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True)


class GMCNN(nn.Module):
    """GMCNN's generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features.
    H and W must be multiples of `multiple` and at least `smallest`.
    """

    multiple = 4

    def __init__(self, *, width: float = 1.0, dilations: Sequence[int] = DILATIONS) -> None:
        """
        width: multiplies every width.
        dilations: of the layers in the middle of each column; smaller ones take smaller images.
        """
        super().__init__()
        self.smallest = smallest_image(max(KERNELS), dilations)
        c = scaled(32, width)
        wide, middle, three = (
            column(_layer, 4, (c, 2 * c, 2 * c, 4 * c, 4 * c, 4 * c), kernel, dilations)
            for kernel in KERNELS
        )
        self.columns = nn.ModuleList(
            (
                wide.append(_bilinear(4)),
                middle.append(nn.Upsample(scale_factor=2))
                .append(_layer(4 * c, 2 * c, 5))
                .append(_layer(2 * c, 2 * c, 5))
                .append(_bilinear(2)),
                three.append(nn.Upsample(scale_factor=2))
                .append(_layer(4 * c, 2 * c, 3))
                .append(_layer(2 * c, 2 * c, 3))
                .append(nn.Upsample(scale_factor=2))
                .append(_layer(2 * c, c, 3))
                .append(_layer(c, c, 3)),
            )
        )
        self.merge = _layer((4 + 2 + 1) * c, c // 2, 3)
        self.out = nn.Conv2d(c // 2, 3, 3, padding=1, padding_mode="reflect")
        initialize(self, "normal")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data *= math.sqrt(32 / c)

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        x = torch.cat((erase(erased * 2 - 1, mask), mask.to(erased.dtype)), 1)
        x = self.out(self.merge(torch.cat([column(x) for column in self.columns], 1)))
        return Prediction((x.float().clamp(-1, 1) + 1) / 2, {})
