"""LaMa: resolution-robust large mask inpainting with Fourier convolutions (Suvorov et al., 2022).

A ResNet whose middle is of fast Fourier convolutions (Chi et al. 2020; fig. 2): three quarters of
the channels see the whole image at once, by a 1×1 convolution of their spectrum; the others see
3×3 pixels, and each layer exchanges both. LaMa-Fourier has 9 blocks, Big LaMa 18.

The paper does not say, the released code does
- convolutions pad by reflection; norms are batch norms, also of the spectrum.
- the spectrum is orthonormal; real and imaginary part of a channel are neighbors.
- weights are drawn as PyTorch does; holes are 0, and the mask is a fourth channel.

Spectra are computed in float32 under autocast too.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .layers import Prediction, scaled, without_autocast
from .masking import check_pair, erase

Streams = tuple[Tensor, Tensor | None]  # local and global channels
Widths = tuple[int, int]


class FourierUnit(nn.Module):
    """N×C×H×W → N×C×H×W: spectrum, 1×1 convolution of its 2C parts, norm, ReLU, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            spectrum = torch.view_as_real(torch.fft.rfft2(x.float(), norm="ortho"))
        parts = spectrum.permute(0, 1, 4, 2, 3).flatten(1, 2)  # N×2C×H×(W/2 + 1)
        parts = self.norm(self.mix(parts)).relu().float().unflatten(1, (-1, 2))
        with without_autocast(x):
            spectrum = torch.view_as_complex(parts.permute(0, 1, 3, 4, 2).contiguous())
            return torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")


class Spectral(nn.Module):
    """Global to global channels: a Fourier unit of half the width, added to what enters it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.fourier = FourierUnit(half)
        self.expand = nn.Conv2d(half, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.expand(x + self.fourier(x))


class FFC(nn.Module):
    """Fast Fourier convolution, norms, ReLU: each stream is the sum of what both give it."""

    def __init__(self, widths: Widths, out: Widths, kernel: int = 3, stride: int = 1) -> None:
        """widths, out: local and global channels; 0: there is no such stream."""
        super().__init__()

        def convolution(i: int, o: int) -> Any:
            if not i or not o:
                return None
            padding = kernel // 2
            return nn.Conv2d(i, o, kernel, stride, padding, bias=False, padding_mode="reflect")

        self.local = convolution(widths[0], out[0])
        self.to_global = convolution(widths[0], out[1])
        self.to_local = convolution(widths[1], out[0])
        self.spectral: Any = Spectral(widths[1], out[1]) if widths[1] and out[1] else None
        self.norm = nn.BatchNorm2d(out[0])
        self.norm_global: Any = nn.BatchNorm2d(out[1]) if out[1] else None

    def forward(self, streams: Streams) -> Streams:
        here, everywhere = streams
        x, y = self.local(here), None if self.to_global is None else self.to_global(here)
        if everywhere is not None:
            x, y = x + self.to_local(everywhere), y + self.spectral(everywhere)
        return self.norm(x).relu(), None if y is None else self.norm_global(y).relu()


class Block(nn.Module):
    """Two fast Fourier convolutions, added to their input."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.layers = nn.Sequential(FFC(widths, widths), FFC(widths, widths))

    def forward(self, streams: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        local, everywhere = self.layers(streams)
        return streams[0] + local, streams[1] + everywhere


class LaMa(nn.Module):
    """LaMa's generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features.
    H and W must be multiples of `multiple` and at least `smallest`.
    """

    multiple = 8
    smallest = 16  # reflection needs maps of 2 in the middle

    def __init__(self, *, width: float = 1.0, blocks: int = 9) -> None:
        """
        width: multiplies every width.
        blocks: in the middle, at an eighth of the size.
        """
        super().__init__()
        c = scaled(64, width)
        middle = (2 * c, 6 * c)  # local and global: 1 to 3
        self.encoder = nn.Sequential(
            FFC((4, 0), (c, 0), 7),
            FFC((c, 0), (2 * c, 0), stride=2),
            FFC((2 * c, 0), (4 * c, 0), stride=2),
            FFC((4 * c, 0), middle, stride=2),
        )
        self.blocks = nn.Sequential(*(Block(middle) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(2 * out, out, 3, 2, 1, output_padding=1),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                )
                for out in (4 * c, 2 * c, c)
            )
        )
        self.out = nn.Conv2d(c, 3, 7, padding=3, padding_mode="reflect")

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        x = torch.cat((erase(erased, mask), mask.to(erased.dtype)), 1)
        streams = self.blocks(self.encoder((x, None)))
        return Prediction(self.out(self.decoder(torch.cat(streams, 1))).float().sigmoid(), {})
