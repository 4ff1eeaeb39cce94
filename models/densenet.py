"""MUSICAL's discriminator: DenseNet-121 as a feature extractor with a small convolution on top.

Huang et al.: Densely connected convolutional networks, CVPR 2017. Parameters and buffers below
`features` have torchvision's names, so that its published weights load.

The paper does not say more than "DenseNet". As released: `features` to the last norm, ReLU, a 3×3
convolution to 256 maps without padding; logits on a 6×6 grid for 256×256 images, all 256 maps of
it judged; unconditional, images in [−1, 1]. The released code draws every weight anew after having
loaded ImageNet's; here the head alone is drawn, so that loading is what counts.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from .masking import check_size

GROWTH = 32
BLOCKS = (6, 12, 24, 16)  # DenseNet-121
BOTTLENECK = 4
OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class DenseLayer(nn.Module):
    """Bottleneck 1×1, then 3×3 to GROWTH maps, appended to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        middle = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        new = self.conv2(torch.relu(self.norm2(new)))
        return torch.cat((x, new), 1)


def _block(channels: int, layers: int, growth: int) -> tuple[nn.Sequential, int]:
    names = OrderedDict(
        (f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth)) for i in range(layers)
    )
    return nn.Sequential(names), channels + layers * growth  # type: ignore[arg-type]


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


class DenseNetDiscriminator(nn.Module):
    """Logits of "real": N×3×H×W float in [0, 1] → N×256×(H/32 − 2)×(W/32 − 2).

    H and W must be multiples of 32, at least 96.
    """

    multiple = 32
    smallest = 96

    def __init__(self, growth: int = GROWTH, blocks: tuple[int, ...] = BLOCKS) -> None:
        """Smaller `growth` and `blocks` than DenseNet-121's are for tests."""
        super().__init__()
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        for i, count in enumerate(blocks, 1):
            layers[f"denseblock{i}"], channels = _block(channels, count, growth)
            if i < len(blocks):
                layers[f"transition{i}"] = _transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.head = nn.Conv2d(channels, 256, 3)
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        self.initialize_head()

    def initialize_head(self) -> None:
        """Draw the head alone from N(0, 0.02), as released."""
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.multiple, self.smallest)
        return self.head(torch.relu(self.features(image * 2 - 1)))


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `features` of a published DenseNet file under today's names.

    Old torchvision called modules `norm.1`, now `norm1`; the file's classifier is left out.
    """
    return {
        OLD_NAME.sub(r"\1\2", name): value
        for name, value in state.items()
        if name.startswith("features.")
    }
