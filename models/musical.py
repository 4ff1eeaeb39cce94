"""MUSICAL: image inpainting with multi-scale contextual attention (Wang et al., IJCAI 2019).

A U-Net whose inner half keeps its size and dilates instead (fig. 1), with multi-scale contextual
attention (`contextual_attention.py`) where the maps are a quarter of the image's size.

The paper does not say, and the authors' released code has
- widths: 64, 128, 256, 512 and 512 below; kernels 4×4 of stride 2; instance norm; biases.
- the bottom: four pairs of a 3×3 and a 3×3 of dilation 2 at a sixteenth of the size, and as many
  3×3 on the way up.
- where attention sits: the text ("before the third last deconvolution", "64×64") contradicts
  itself; after that deconvolution the map is 64×64.
- that the mask is a fourth input channel; images in [−1, 1], tanh; weights from N(0, 0.02).
Experiment 2 of the paper ("single-scale attention") has 3×3 patches alone. The authors' code then
has neither squeeze-and-excitation nor the 1×1: `direct`.
"""

import torch
from torch import Tensor, nn

from .contextual_attention import MultiScaleAttention
from .layers import Prediction, one_of
from .masking import check_pair, erase

ATTENTION: dict[str, tuple[int, ...]] = {
    "multi": (1, 3),
    "single": (3,),
    "direct": (3,),
    "none": (),
}
DILATION = 2
LEAK = 0.2


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LeakyReLU(LEAK),
        nn.Conv2d(in_channels, out_channels, 4, 2, 1),
        nn.InstanceNorm2d(out_channels, affine=True),
    )


def _flat(channels: int, innermost: bool) -> nn.Sequential:
    """3×3 then dilated 3×3 at one size; the innermost pair has no norm."""
    return nn.Sequential(
        nn.LeakyReLU(LEAK),
        nn.Conv2d(channels, channels, 3, 1, 1),
        nn.Identity() if innermost else nn.InstanceNorm2d(channels, affine=True),
        nn.LeakyReLU(LEAK),
        nn.Conv2d(channels, channels, 3, 1, DILATION, DILATION),
    )


def _flat_up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 3, 1, 1),
        nn.InstanceNorm2d(out_channels, affine=True),
    )


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1),
        nn.InstanceNorm2d(out_channels, affine=True),
    )


class Musical(nn.Module):
    """MUSICAL's generator.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction without features.
    H and W must be multiples of `multiple` and at least `smallest`.
    """

    multiple = 16
    smallest = 16 * (DILATION + 1)  # the bottom's map must reach beyond its dilation

    def __init__(
        self,
        *,
        ngf: int = 64,
        attention: str = "multi",
        order: str = "paper",
        temperature: float = 10.0,
        propagation: int = 1,
        renormalize: str = "all",
    ) -> None:
        """
        ngf: width of the first layer; the others are its multiples.
        attention: multi (patches of 1 and 3), single (3: experiment 2), direct (3, of the order
            released: no squeeze-and-excitation and no 1×1, as the authors' code has it) or none.
        order: paper (eq. 1–3) or released (the authors' code).
        temperature: λ before the softmax, for the order `paper`; the printed formula has 1.
        propagation: k of eq. 2.
        renormalize: copyable or all, see `contextual_attention`; checkpoints of earlier versions
            do not name it and have "all".
        """
        super().__init__()
        patches = ATTENTION[one_of("attention", attention, tuple(ATTENTION))]
        self.first = nn.Conv2d(3 + 1, ngf, 4, 2, 1)
        self.down = nn.ModuleList(_down(ngf * k, ngf * 2 * k) for k in (1, 2, 4))
        wide = ngf * 8
        self.flat = nn.ModuleList(_flat(wide, innermost=i == 3) for i in range(4))
        self.flat_up = nn.ModuleList(_flat_up(wide * (1 if i == 0 else 2), wide) for i in range(4))
        self.up4, self.up3 = _up(wide * 2, ngf * 4), _up(ngf * 8, ngf * 2)
        self.attend = (
            MultiScaleAttention(
                ngf * 2,
                patches,
                order,
                temperature,
                propagation,
                renormalize,
                direct=attention == "direct",
            )
            if patches
            else None
        )
        self.up2 = _up(ngf * 4, ngf)
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(ngf * 2, 3, 4, 2, 1))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        known = 1 - mask.to(erased.dtype)
        x = self.first(torch.cat((erase(erased * 2 - 1, mask), known), 1))
        # The released blocks activate in place, so that skips carry LeakyReLU(x). Every reader
        # of a skip begins with a ReLU, after which both are the same.
        skips = [x]
        for down in (*self.down, *self.flat):
            x = down(x)
            skips.append(x)
        x = skips.pop()
        for up in (*self.flat_up, self.up4):
            x = torch.cat((up(x), skips.pop()), 1)
        x = self.up3(x)
        if self.attend is not None:
            x = self.attend(x, mask)
        x = self.up2(torch.cat((x, skips.pop()), 1))
        x = self.last(torch.cat((x, skips.pop()), 1))
        return Prediction((torch.tanh(x.float()) + 1) / 2, {})
