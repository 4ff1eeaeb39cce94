"""GLC: globally and locally consistent image completion (Iizuka et al., SIGGRAPH 2017).

The completion network: an encoder of two halvings and four dilated layers (`columns.py`), then two
transposed convolutions. Judged by a global and a local discriminator (`discriminators.py`).

The paper does not say
- the order of batch norm and ReLU: convolution, norm, ReLU; biases stay, as in the released
  network (6,072,131 weights).
- how the input is centered: the mean color of the training data is subtracted; `mean` is that of
  the released weights for Places2. The output is an image in [0, 1], nothing is added back.
- the weights' distribution: Kaiming.
- whether its MSE is a mean over the hole or over all pixels: `completion_l2` takes either.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .columns import DILATIONS, column, smallest_image
from .layers import Prediction, initialize_for_relu, one_of, scaled
from .masking import check_pair, erase

PLACES2_MEAN = (0.4560, 0.4472, 0.4155)  # RGB
REGIONS = ("all", "hole")


def _layer(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class GLC(nn.Module):
    """The completion network.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features.
    H and W must be multiples of `multiple` and at least `smallest`.
    """

    multiple = 4
    mean: Tensor

    def __init__(
        self,
        *,
        width: float = 1.0,
        dilations: Sequence[int] = DILATIONS,
        mean: Sequence[float] = PLACES2_MEAN,
    ) -> None:
        """
        width: multiplies every width (never below 4).
        dilations: of the layers in the middle (rows 7 to 10).
        mean: subtracted from the input, RGB in [0, 1].
        """
        super().__init__()
        self.smallest = smallest_image(3, dilations)
        half, one, two, four = (scaled(64 * k, width) for k in (0.5, 1, 2, 4))
        self.encoder = column(  # rows 1 to 12
            _layer, 4, (one, two, two, four, four, four), 3, dilations, first=5
        )
        self.decoder = nn.Sequential(  # rows 13 to 17
            _up(four, two),
            _layer(two, two),
            _up(two, one),
            _layer(one, half),
            nn.Conv2d(half, 3, 3, padding=1),
        )
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1), persistent=False)
        initialize_for_relu(self)

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        x = torch.cat((erase(erased - self.mean, mask), mask.to(erased.dtype)), 1)
        x = self.decoder(self.encoder(x))
        return Prediction(torch.sigmoid(x.float()), {})


def completion_l2(prediction: Tensor, image: Tensor, mask: Tensor, region: str = "all") -> Tensor:
    """‖M ⊙ (C(x) − x)‖²: its mean over each image or each hole, then over the batch."""
    one_of("region", region, REGIONS)
    m = mask.float()
    square = (prediction.float() - image.float()).square().mean(1, keepdim=True) * m
    area = m if region == "hole" else torch.ones_like(m)
    return (square.sum((1, 2, 3)) / area.sum((1, 2, 3)).clamp(min=1)).mean()
