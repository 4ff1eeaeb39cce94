"""DeepFill: generative image inpainting with contextual attention, "CA" (Yu et al., CVPR 2018).

A coarse network fills the hole, a refinement network paints over it (fig. 2): one branch dilates,
the other attends (fig. 4), and one decoder takes both. Two WGAN critics judge image and hole.

As the code (v1.0.0) has it, where the paper says less
- zero padding, ELU, no norms, weights Xavier (with N(0, 0.02) the network is dead); ReLU before the
  attention. Outputs are clipped to [−1, 1]. 3.6 M weights; the paper's 2.9 M are another network.
- attention rewrites known cells too, and its copies are weighed as `strided_attention.py` says.
- gradients reach the coarse network through the refined image.
Where we differ: masks are another for each image, and a cell of the attention's map is a hole if
any of its pixels is (they take every eighth pixel, which misses thin strokes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contextual_attention import contextual_attention
from .discriminators import GlobalLocal, StackDiscriminator
from .layers import Prediction, initialize, one_of, scaled
from .masking import check_pair, erase

Row = tuple[int, int, int, int]  # width, kernel, stride, dilation
DILATED: tuple[Row, ...] = tuple((128, 3, 1, dilation) for dilation in (2, 4, 8, 16))
FLAT: Row = (128, 3, 1, 1)
COARSE = ((32, 5, 1, 1), (64, 3, 2, 1), (64, 3, 1, 1), (128, 3, 2, 1), FLAT, FLAT, *DILATED)
BRANCH = ((32, 5, 1, 1), (32, 3, 2, 1), (64, 3, 1, 1), (64, 3, 2, 1), FLAT, FLAT, *DILATED)
ATTEND = ((32, 5, 1, 1), (32, 3, 2, 1), (64, 3, 1, 1), (128, 3, 2, 1), FLAT, FLAT)
DECODE = (FLAT, FLAT), ((64, 3, 1, 1), (64, 3, 1, 1)), ((32, 3, 1, 1), (16, 3, 1, 1))


def _stack(channels: int, rows: tuple[Row, ...], width: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out, kernel, stride, dilation in rows:
        out, padding = scaled(out, width), dilation * (kernel // 2)
        layers += [nn.Conv2d(channels, out, kernel, stride, padding, dilation), nn.ELU()]
        channels = out
    return nn.Sequential(*layers)


class Decoder(nn.Sequential):
    """N×in×H/4×W/4 → N×3×H×W in [−1, 1]: two doublings, each before two convolutions."""

    def __init__(self, channels: int, width: float) -> None:
        layers: list[nn.Module] = []
        for i, rows in enumerate(DECODE):
            if i:
                layers.append(nn.Upsample(scale_factor=2))
            layers.append(_stack(channels, rows, width))
            channels = scaled(rows[-1][0], width)
        super().__init__(*layers, nn.Conv2d(channels, 3, 3, padding=1), nn.Hardtanh())


class DeepFill(nn.Module):
    """DeepFill's generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction, whose feature
    `coarse` is the first network's image. H and W must be multiples of `multiple` and at least
    `smallest`.
    """

    multiple = 8
    smallest = 72  # the map, a quarter, must reach beyond the dilation of 16

    def __init__(self, *, width: float = 1.0) -> None:
        """width: multiplies every width."""
        super().__init__()
        wide = scaled(128, width)
        self.coarse = nn.Sequential(_stack(5, COARSE, width), Decoder(wide, width))
        self.branch = _stack(5, BRANCH, width)
        self.before = _stack(5, ATTEND, width)
        self.before[-1] = nn.ReLU()
        self.after = _stack(wide, (FLAT, FLAT), width)
        self.decoder = Decoder(2 * wide, width)
        initialize(self, "xavier")

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        known, mask = erase(erased * 2 - 1, mask), mask.to(erased.dtype)
        flags = torch.cat((torch.ones_like(mask), mask), 1)
        coarse = self.coarse(torch.cat((known, flags), 1)).float()
        x = torch.cat((torch.where(mask.bool(), coarse, known), flags), 1)
        holes = F.max_pool2d(mask, 8)  # on the grid of keys, every second cell of the map
        attended = contextual_attention(self.before(x), holes, (3,), order="yu", blend="none")[0]
        image = self.decoder(torch.cat((self.branch(x), self.after(attended)), 1)).float()
        return Prediction((image + 1) / 2, {"coarse": (coarse + 1) / 2})


def critics(size: int = 256, width: float = 1.0, local: str = "crop") -> GlobalLocal:
    """The global and the local critic of images of size×size, which judge in [−1, 1].

    local: "crop", the half-size window around the hole; "masked", the whole image, averaged over
    the hole, for holes of any shape.
    """
    crop = one_of("local", local, ("crop", "masked")) == "crop"
    return GlobalLocal(
        StackDiscriminator(size, (64, 128, 256, 256), width=width, init="xavier"),
        StackDiscriminator(
            size // 2 if crop else size,
            (64, 128, 256, 512),
            head="linear" if crop else "masked",
            width=width,
            init="xavier",
        ),
    )
