"""Discriminators of the comparators: patches, a stack with a head, and a global and local pair.

Each is called with images in [0, 1] and returns `(logits, features)`; MUSICAL's DenseNet has a
file of its own. Counts of weights, at full width:

    EdgeConnect    2 × PatchDiscriminator, spectral                            2,762,752 / 2,763,776
    Shift-Net      PatchDiscriminator, batch norm                              2,765,568
    LaMa           PatchDiscriminator, batch norm, deep                        6,962,369
    Context Enc.   StackDiscriminator 4×4, head "conv"                         2,765,568 / 2,896,896
    GLC            GlobalLocal, joint, batch norm                              45,063,681
    DeepFill       GlobalLocal of two critics                                  7,072,770
    GMCNN          GlobalLocal, spectral, ELU                                  5,417,730

The local half judges a crop around the hole; for holes of any shape ("masked") the whole image,
its map of answers averaged over the hole (Wang et al. 2018, their code for strokes).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ACTIVATIONS, initialize, make_norm, normalize_spectra, one_of, scaled
from .masking import check_size

HEADS = ("linear", "conv", "masked")


class PatchDiscriminator(nn.Module):
    """PatchGAN of 70×70 pixels (Isola et al. 2017): N×in×H×W → logits N×1×(H/8 − 2)×(W/8 − 2).

    features: the layers' outputs, the logits among them. H and W: multiples of 8, at least 24.
    """

    multiple = 8
    smallest = 24

    def __init__(
        self,
        in_channels: int = 3,
        norm: str = "none",
        spectral: bool = False,
        width: float = 1.0,
        signed: bool = False,
        deep: bool = False,
    ) -> None:
        """
        norm: none, batch or instance, of the middle layers.
        width: multiplies every width.
        signed: judge images in [−1, 1].
        deep: a halving more, padding of 2, biases (LaMa): logits N×1×(H/16 + 3)×(W/16 + 3).
        """
        super().__init__()
        self.signed = signed
        self.layers = nn.ModuleList()
        channels = in_channels
        strided, padding = (4, 2) if deep else (3, 1)
        for i in range(strided + 1):
            out, stride = scaled(min(64 * 2**i, 512), width), 2 if i < strided else 1
            self.layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, out, 4, stride, padding, bias=deep),
                    make_norm(norm if i else "none", out),
                    nn.LeakyReLU(0.2),
                )
            )
            channels = out
        self.layers.append(nn.Conv2d(channels, 1, 4, 1, padding, bias=deep))
        initialize(self, "normal")
        if spectral:
            normalize_spectra(self)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        check_size(image, self.multiple, self.smallest)
        x = image * 2 - 1 if self.signed else image
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return x, tuple(features)


class StackDiscriminator(nn.Module):
    """Convolutions of stride 2, then a head: N×in×size×size → logits N×out.

    features: the convolutions' outputs.
    """

    def __init__(
        self,
        size: int,
        widths: Sequence[int],
        *,
        kernel: int = 5,
        norm: str = "none",
        act: str = "leaky",
        spectral: bool = False,
        bias: bool = True,
        head: str = "linear",
        out: int = 1,
        in_channels: int = 3,
        width: float = 1.0,
        signed: bool = True,
        init: str = "normal",
    ) -> None:
        """
        size: side of the images; a multiple of 2 ** len(widths).
        kernel: 5 or 4. norm: none or batch, after every convolution of 5×5, after every but the
            first of 4×4 (as their authors have it).
        bias: of the convolutions. width: multiplies every width, not `out`.
        head: "linear", fully connected; "conv", a 4×4 without padding, logits N×out×h×w;
            "masked", one more convolution, whose map is averaged over the hole.
        signed: judge images in [−1, 1]. init: how weights are drawn (see `layers.initialize`).
        """
        super().__init__()
        self.size, self.out, self.signed = size, out, signed
        self.head_kind = one_of("head", head, HEADS)
        self.multiple = self.smallest = 2 ** len(widths) * (4 if head == "conv" else 1)
        if size % self.multiple:
            raise ValueError(
                f"a discriminator of images of {size}×{size} with {len(widths)} halvings; expected "
                f"a side that is a multiple of {self.multiple}: change the crop"
            )
        self.layers = nn.ModuleList()
        channels = in_channels
        for i, wide in enumerate(widths):
            wide = scaled(wide, width)
            self.layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, wide, kernel, 2, (kernel - 1) // 2, bias=bias),
                    make_norm(norm if i or kernel == 5 else "none", wide),
                    ACTIVATIONS[one_of("act", act, tuple(ACTIVATIONS))](),
                )
            )
            channels = wide
        self.head: nn.Module
        if head == "linear":
            self.head = nn.Linear(channels * (size // self.multiple) ** 2, out)
        elif head == "conv":
            self.head = nn.Conv2d(channels, out, 4, bias=bias)
        else:
            self.head = nn.Conv2d(channels, out, kernel, 2, (kernel - 1) // 2, bias=bias)
        initialize(self, init)
        if spectral:
            normalize_spectra(self)

    def forward(
        self, image: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """mask: N×1×size×size, 1 = hole; for the head "masked"."""
        if tuple(image.shape[2:]) != (self.size, self.size):
            raise ValueError(
                f"the discriminator's image is {image.shape[2]}×{image.shape[3]}; it was built "
                f"for {self.size}×{self.size}: crop to that"
            )
        x = image * 2 - 1 if self.signed else image
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        if self.head_kind == "linear":
            return self.head(x.flatten(1)), tuple(features)
        x = self.head(x)
        if self.head_kind == "masked":
            assert mask is not None
            weight = F.adaptive_max_pool2d(mask.to(x.dtype), x.shape[2:])
            x = (x * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1)
        return x, tuple(features)


class GlobalLocal(nn.Module):
    """A discriminator of the image and one of its hole: N×3×H×W, mask N×1×H×W → logits.

    joint: both halves' outputs, activated, joined by one linear layer (GLC): N×1. Otherwise they
    are critics on their own (DeepFill, GMCNN): N×2, global and local. features: of both.
    """

    def __init__(
        self, whole: StackDiscriminator, local: StackDiscriminator, joint: bool = False
    ) -> None:
        """local: of a smaller size for crops; with the head "masked", of the same size."""
        super().__init__()
        self.whole, self.local = whole, local
        self.size = whole.size
        self.multiple = max(whole.multiple, local.multiple * whole.size // local.size)
        self.smallest = self.multiple
        self.join = nn.Sequential(nn.ReLU(), nn.Linear(whole.out + local.out, 1)) if joint else None
        if self.join is not None:
            initialize(self.join, "relu")

    def forward(
        self, image: Tensor, mask: Tensor, corner: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """corner: N×2, top and left of the crops; None: those of `hole_window`."""
        first, features = self.whole(image)
        second, more = self.local(*self.near(image, mask, corner))
        both = torch.cat((first, second), 1)
        return both if self.join is None else self.join(both), features + more

    def near(
        self, image: Tensor, mask: Tensor, corner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the local half judges: image and mask, cropped unless its head is "masked"."""
        if self.local.head_kind == "masked":
            return image, mask
        if corner is None:
            corner = hole_window(mask, self.local.size)
        return crop(image, corner, self.local.size), crop(mask, corner, self.local.size)


def hole_window(mask: Tensor, size: int) -> Tensor:
    """Top and left (N×2 int64) of the size×size window around each image's hole (N×1×H×W).

    Centered on the hole's bounding box if that fits, else where most hole pixels are.
    """
    hole = mask[:, 0] > 0.5
    counts = F.avg_pool2d(hole[:, None].float(), (size, 1), 1, divisor_override=1)
    counts = F.avg_pool2d(counts, (1, size), 1, divisor_override=1)
    most = counts.flatten(1).argmax(1)
    fullest = torch.stack((most // counts.shape[3], most % counts.shape[3]), 1)
    first, last = [], []
    for axis in (2, 1):  # rows, then columns, that hold a hole pixel
        line = hole.any(axis).long()
        first.append(line.argmax(1))
        last.append(line.shape[1] - 1 - line.flip(1).argmax(1))
    start, stop = torch.stack(first, 1), torch.stack(last, 1) + 1
    centered = (start + stop - size).div(2, rounding_mode="floor").clamp(min=0)
    rooms = [line.clamp(max=side - size) for line, side in zip(centered.unbind(1), hole.shape[1:])]
    fits = (stop - start <= size).all(1, keepdim=True)
    return torch.where(fits, torch.stack(rooms, 1), fullest)


def crop(x: Tensor, corner: Tensor, size: int) -> Tensor:
    """Cut size×size out of N×C×H×W, image i at corner[i] = (top, left)."""
    steps = torch.arange(size, device=x.device)
    rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
