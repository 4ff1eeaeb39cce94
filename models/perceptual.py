"""Perceptual distances of two images, over the features of VGG16 and AlexNet.

    LPIPS     Zhang et al., 2018, version 0.1, over AlexNet or VGG16
    ST-LPIPS  Ghildyal and Liu, 2022: LPIPS over an AlexNet that strides after blurring
    DISTS     Ding et al., 2020, over VGG16 with L2 pooling

Names as in the published files, so that their weights load. Images are float N×3×H×W in [0, 1];
a distance is float N, 0 for equal images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.vgg import MEAN, STD, VGG16Features

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS, of images in [−1, 1]
VGG_TAPS, VGG_WIDTHS = (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)
ALEX_WIDTHS = (64, 192, 384, 256, 256)
SMALLEST = 32  # for five poolings


def alexnet() -> nn.Sequential:
    """Return the convolutions of torchvision's AlexNet, whose ReLUs are 1, 4, 7, 9 and 11."""
    pool, relu = nn.MaxPool2d(3, 2), nn.ReLU()
    first, second, *others = _alexnet_convolutions(stride=4)
    return nn.Sequential(
        first, relu, pool, second, relu, pool, *(x for c in others for x in (c, relu))
    )


def shift_tolerant_alexnet() -> nn.Sequential:
    """Return ST-LPIPS's AlexNet, whose ReLUs are 2, 6, 10, 12 and 14."""
    pool, relu = nn.MaxPool2d(3, 1), nn.ReLU()
    first, second, *others = _alexnet_convolutions(stride=1)
    start = (first, Blur(64), relu, pool, Blur(64), second, relu, pool, Blur(192))
    return nn.Sequential(*start, *(x for c in others for x in (c, relu)))


def _alexnet_convolutions(stride: int) -> list[nn.Conv2d]:
    rest = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((192, 384), (384, 256), (256, 256))]
    return [nn.Conv2d(3, 64, 11, stride, 2), nn.Conv2d(64, 192, 5, padding=2), *rest]


class Smooth(nn.Module):
    """Weighted mean of each 3×3 window, at every second pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([0.25, 0.5, 0.25])  # binomial, which is Hann's window of five, too
        kernel = torch.outer(taps, taps).expand(channels, 1, 3, 3)
        self.register_buffer("kernel", kernel.clone(), persistent=False)

    def mean(self, x: Tensor, padding: int) -> Tensor:
        kernel = self.get_buffer("kernel")
        return functional.conv2d(x, kernel, None, 2, padding, groups=len(kernel))


class Blur(Smooth):
    """Of ST-LPIPS; pads two pixels by reflection."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(functional.pad(x, (2, 2, 2, 2), "reflect"), 0)


class L2Pool(Smooth):
    """Of DISTS: root of the mean of squares."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.mean(x**2, 1) + 1e-12).sqrt()


class _Distance(nn.Module):
    """A frozen network whose maps are compared: `features`, tapped after the layers `taps`."""

    def __init__(
        self,
        features: nn.Sequential,
        taps: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(features)[: taps[-1] + 1])
        self.taps = taps
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def maps(self, a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return both images' maps at each tap, from one forward."""
        x = (torch.cat([a, b]) - self.mean) / self.std  # type: ignore[operator]
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                found.append((x[: len(a)], x[len(a) :]))
        return found


class LPIPS(_Distance):
    def __init__(self, features: nn.Sequential, taps: tuple[int, ...], widths: tuple[int, ...]):
        super().__init__(features, taps, SHIFT, SCALE)
        for i, width in enumerate(widths):
            layer = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{i}", nn.ModuleDict({"model": layer}))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), device=a.device)
        for i, (x, y) in enumerate(self.maps(2 * a - 1, 2 * b - 1)):
            x, y = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
            total += self.get_submodule(f"lin{i}.model")((x - y) ** 2).mean((1, 2, 3))
        return total


def lpips_vgg() -> LPIPS:
    return LPIPS(VGG16Features(blocks=5).features, VGG_TAPS, VGG_WIDTHS)


def lpips_alex() -> LPIPS:
    return LPIPS(alexnet(), (1, 4, 7, 9, 11), ALEX_WIDTHS)


def stlpips() -> LPIPS:
    return LPIPS(shift_tolerant_alexnet(), (2, 6, 10, 12, 14), ALEX_WIDTHS)


class DISTS(_Distance):
    def __init__(self) -> None:
        features = VGG16Features(blocks=5).features
        for i, channels in zip((4, 9, 16, 23), VGG_WIDTHS):
            features[i] = L2Pool(channels)
        super().__init__(features, VGG_TAPS, MEAN, STD)
        self.widths = (3, *VGG_WIDTHS)
        self.alpha = nn.Parameter(torch.full((1, sum(self.widths), 1, 1), 0.1))
        self.beta = nn.Parameter(torch.full((1, sum(self.widths), 1, 1), 0.1))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = self.alpha.sum() + self.beta.sum()
        alphas = (self.alpha / total).flatten().split(self.widths)
        betas = (self.beta / total).flatten().split(self.widths)
        similarity = torch.zeros(len(a), device=a.device)
        for (x, y), alpha, beta in zip([(a, b), *self.maps(a, b)], alphas, betas):
            mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
            var_x, var_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
            covariance = (x * y).mean((2, 3)) - mean_x * mean_y
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (var_x + var_y + 1e-6)
            similarity += texture @ alpha + structure @ beta
        return 1 - similarity
