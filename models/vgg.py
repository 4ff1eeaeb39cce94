"""VGG16 up to its third pooling, the features of perceptual and style losses (MUSICAL eq. 4–6).

Simonyan, Zisserman: Very deep convolutional networks, 2015. Names as torchvision's `vgg16`, whose
published weights load (`pipeline/training/weights.py`); frozen and always in evaluation mode.

MUSICAL does not say how images are scaled. `normalize=True` scales as for the published weights;
False feeds [−1, 1], as its released code does.
"""

from typing import Self

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in [0, 1]
WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
SMALLEST = 8


class VGG16Features(nn.Module):
    """N×3×H×W float in [0, 1], H and W at least 8 → the maps after pool1, pool2 and pool3.

    blocks: up to which pool there are layers; perceptual distances take all five.
    """

    def __init__(self, normalize: bool = True, blocks: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in WIDTHS[:blocks]:
            for out in widths:
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        mean, std = (MEAN, STD) if normalize else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode."""
        return super().train(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if min(image.shape[2:]) < SMALLEST:
            raise ValueError(
                f"the image is {image.shape[2]}×{image.shape[3]}; VGG16 needs at least "
                f"{SMALLEST}×{SMALLEST} for three poolings: train on larger crops"
            )
        x = (image - self.mean) / self.std  # type: ignore[operator]
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return tuple(maps)
