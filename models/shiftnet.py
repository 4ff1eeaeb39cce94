"""Shift-Net: image inpainting via deep feature rearrangement (Yan et al., ECCV 2018).

A U-Net of 4×4 convolutions of stride 2. Where its maps are an eighth of the image's size, the
shift layer gives the decoder, for each cell of the hole, the encoder's features of the known cell
that resembles the decoder's most. No gradient passes that choice: the decoder learns to match
through the guidance loss alone.

The network is that of the authors' Lua release, which made the paper's numbers; its convolutions
have no biases in effect (each closure sets them to 0). The paper does not say
- which cells of the map belong to a hole of any shape: those with a hole pixel (`hole_cells`).
- an image without known cells: nothing is shifted.
- the range: [−1, 1] inside, behind a tanh; holes hold ImageNet's mean color, no mask channel.
- the weights' distribution: N(0, 0.02), scales of norms N(1, 0.02), as released.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Prediction, initialize, scaled, without_autocast
from .masking import check_pair

FILL = (123, 104, 117)  # RGB of 255
SHIFT = 3  # halvings before the shift layer
BLOCK = 1 << 24  # similarities at a time


def hole_cells(mask: Tensor) -> Tensor:
    """Cells of the shift layer's map, N×1×H/8×W/8 bool, that hold a hole pixel."""
    return F.max_pool2d(mask.float(), 2**SHIFT) > 0


def shift(decoder: Tensor, encoder: Tensor, hole: Tensor) -> Tensor:
    """Shift layer: the encoder's features of each hole cell's nearest known cell; 0 where known.

    decoder, encoder: N×C×H×W; hole: N×1×H×W bool, another for each image. Nearest: by the cosine
    of the decoder's features to the encoder's. Gradients go to known cells of `encoder`.
    """
    nearest = _nearest_known(decoder, encoder, hole)[:, None].expand(-1, encoder.shape[1], -1)
    shifted = encoder.flatten(2).gather(2, nearest).view_as(encoder)
    some_known = ~hole.flatten(1).all(1)[:, None, None, None]
    return shifted.masked_fill(~(hole & some_known), 0)


@torch.no_grad()
def _nearest_known(decoder: Tensor, encoder: Tensor, hole: Tensor) -> Tensor:
    """Per cell of `decoder` the index of the known cell of `encoder` nearest to it, N×(H·W)."""
    with without_autocast(encoder):
        dtype = torch.promote_types(encoder.dtype, torch.float32)
        keys, queries = encoder.flatten(2).to(dtype), decoder.flatten(2).to(dtype).transpose(1, 2)
        # A query's norm does not change which key is nearest.
        keys = keys / (keys.norm(dim=1, keepdim=True) + 1e-8)
        blocks = [queries]
        if not torch.compiler.is_exporting():  # which cannot take a loop over sizes
            blocks = list(queries.split(max(1, BLOCK // hole.numel()), 1))
        closed = hole.flatten(2)
        return torch.cat([(q @ keys).masked_fill(closed, -torch.inf).argmax(2) for q in blocks], 1)


def guidance(decoder: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Guidance loss: mean over all elements of the square of (decoder − target) in the hole.

    decoder: the feature of that name of a Prediction; target: that of `targets`, no gradient.
    """
    difference = (decoder.float() - target.detach().float()) * hole_cells(mask)
    return difference.square().mean()


def _down(in_channels: int, out_channels: int, norm: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.LeakyReLU(0.2),
        nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True) if norm else nn.Identity(),
    )


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True),
    )


class ShiftNet(nn.Module):
    """Shift-Net's generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction, whose feature
    `decoder` (N×C×H/8×W/8, rectified) the guidance loss reads. H and W: multiples of `multiple`.
    """

    fill: Tensor

    def __init__(self, *, width: float = 1.0, levels: int = 8) -> None:
        """
        width: multiplies every width (never below 4).
        levels: halvings; 8 take 256×256 to one cell. At least 4.
        """
        super().__init__()
        if levels <= SHIFT:
            raise ValueError(
                f"levels={levels}; expected at least {SHIFT + 1}: more halvings than "
                "there are before the shift layer"
            )
        self.multiple = self.smallest = 2**levels
        widths = [scaled(64 * min(2**i, 8), width) for i in range(levels)]
        self.first = nn.Conv2d(3, widths[0], 4, 2, 1, bias=False)  # e1
        self.down = nn.ModuleList(  # e2 to e8, the innermost without a norm
            _down(a, b, norm=i < levels - 2) for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        ups = []  # d1 to d7, the one behind the shift layer with a third group of channels
        for i in range(levels - 1, 0, -1):
            groups = 1 if i == levels - 1 else 3 if i == SHIFT - 1 else 2
            ups.append(_up(groups * widths[i], widths[i - 1]))
        self.up = nn.ModuleList(ups)
        self.last = nn.Sequential(  # d8
            nn.ReLU(), nn.ConvTranspose2d(2 * widths[0], 3, 4, 2, 1, bias=False)
        )
        self.register_buffer("fill", torch.tensor(FILL).view(3, 1, 1) / 255, persistent=False)
        initialize(self, "normal")

    def _encoded(self, erased: Tensor, mask: Tensor, levels: int) -> list[Tensor]:
        """Outputs of the first `levels` layers of the encoder."""
        check_pair(erased, mask, self.multiple, self.smallest)
        maps = [self.first(torch.where(mask.bool(), self.fill, erased) * 2 - 1)]
        for down in self.down[: levels - 1]:
            maps.append(down(maps[-1]))
        return maps

    def targets(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The encoder's features of the original image, what `decoder` should be in the hole."""
        return {"decoder": self._encoded(image, torch.zeros_like(mask), SHIFT)[-1].relu()}

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        # The released blocks activate in place, so that skips carry LeakyReLU(x). Every reader
        # of a skip begins with a ReLU, after which both are the same.
        skips = self._encoded(erased, mask, len(self.down) + 1)
        x, features = skips.pop(), {}
        for up in self.up:
            x = up(x)
            skip = skips.pop()
            joined = [x, skip]
            if len(skips) == SHIFT - 1:
                features["decoder"] = x.relu()
                joined.append(shift(features["decoder"], skip.relu(), hole_cells(mask)))
            x = torch.cat(joined, 1)
        image = (torch.tanh(self.last(x).float()) + 1) / 2
        return Prediction(image, features)
