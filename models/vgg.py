"""VGG16 and VGG19, the features of perceptual and style losses (MUSICAL eq. 4–6, EdgeConnect).

Simonyan, Zisserman: Very deep convolutional networks, 2015. Names as torchvision's `vgg16` and
`vgg19`, whose published weights load (`pipeline/training/weights.py`); frozen and always in
evaluation mode. Layers are named relu1_1, relu1_2, pool1, …, after block and convolution.
"""

from collections.abc import Collection, Sequence
from typing import Self

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in [0, 1]
IMAGENET, SIGNED, PLAIN = (MEAN, STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)
WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
WIDTHS_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 2)  # to relu5_2


class VGG(nn.Module):
    """Convolutions of 3×3 with ReLU, a pooling after each block.

    scale: what is subtracted from images in [0, 1], and by what they are divided.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        scale: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.names: list[str] = []
        channels = 3
        for block, widths in enumerate(blocks, 1):
            for number, out in enumerate(widths, 1):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                self.names += [f"conv{block}_{number}", f"relu{block}_{number}"]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
            self.names.append(f"pool{block}")
        self.features = nn.Sequential(*layers)
        for name, value in zip(("mean", "std"), scale):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode."""
        return super().train(False)

    def maps(self, image: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The outputs of these ReLUs and poolings, by name; layers below the last are not run."""
        last = max(map(self.names.index, taps))
        smallest = 2 ** sum(name.startswith("pool") for name in self.names[: last + 1])
        if min(image.shape[2:]) < smallest:
            raise ValueError(
                f"the image is {image.shape[2]}×{image.shape[3]}; VGG needs at least "
                f"{smallest}×{smallest} for {self.names[last]}: train on larger crops"
            )
        x = (image - self.mean) / self.std  # type: ignore[operator]
        found = {}
        for name, layer in zip(self.names[: last + 1], self.features):
            x = layer(x)
            if name in taps:
                found[name] = x
        return found


class VGG16Features(VGG):
    """N×3×H×W float in [0, 1], H and W at least 8 → the maps after pool1, pool2 and pool3.

    normalize: scale as for the published weights; False: feed [−1, 1], as MUSICAL's released code
    does (its paper does not say).
    blocks: up to which pool there are layers; perceptual distances take all five.
    """

    def __init__(self, normalize: bool = True, blocks: int = 3) -> None:
        super().__init__(WIDTHS[:blocks], IMAGENET if normalize else SIGNED)
        self.pools = tuple(f"pool{i}" for i in range(1, blocks + 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps(image, self.pools).values())


class VGG19Features(VGG):
    """N×3×H×W float in [0, 1] and names of layers up to relu5_2 → their maps by name."""

    def __init__(self, scale: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET) -> None:
        super().__init__(WIDTHS_19, scale)

    def forward(self, image: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        return self.maps(image, taps)
