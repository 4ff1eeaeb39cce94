"""Channel and spatial attention: MSA-Net's own (CVIU 2021, figs. 4 and 6) and its comparators.

Every module maps N×C×H×W to the same shape, by multiplying with its weights.

The paper does not say
- whether the weights W_s and W_c pass a gate: sigmoid here (SE and CBAM, which it builds on, have
  one; ungated, the unnormalized network diverges); `gate="none"` is the printed formula.
- the widths of F_1 and F_2 in fig. 4 ("less feature maps"): C/2 and C/4.
- n of eq. 7: `squeeze`, full = C. F_e has n channels and stride 2 ("squeeze the height and
  width"); W_a is pooled from F_s, which must then have C channels.
- what follows the 1×1 convolution to C/r: ReLU, as in SE.
- how the comparators of table 5 were sized: r = 4 throughout, as in the paper's own.
"""

import torch
from torch import Tensor, nn

from .layers import ConvUnit, one_of, without_autocast

REDUCTION = 4  # r, MSA-Net 3.3.2; also for SE and CBAM (16 in their papers), so that sizes compare
CHANNEL = ("augmented", "none", "se", "cbam", "sca")
SPATIAL = ("fusing", "none", "cbam", "sca")
GATES = ("sigmoid", "none")
SQUEEZES = {"full": 1, "half": 2, "quarter": 4}


def pooled(x: Tensor) -> Tensor:
    """Mean over the map: N×C×H×W → N×C×1×1."""
    return x.mean((2, 3), keepdim=True)


def over_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and mean over channels, each N×1×H×W (CBAM's two spatial descriptors)."""
    return x.amax(1, keepdim=True), x.mean(1, keepdim=True)


class FusingSpatialAttention(nn.Module):
    """Eq. 5–6: one map from a gradual extraction (F_1, F_2, Φ_f) fused with max and mean."""

    def __init__(self, channels: int, norm: str = "batch", gate: str = "sigmoid") -> None:
        super().__init__()
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        self.gradual = nn.Sequential(
            ConvUnit(channels, half, norm=norm),
            ConvUnit(half, quarter, norm=norm),
            nn.Conv2d(quarter, 1, 3, padding=1, bias=False),
        )
        self.fuse = nn.Conv2d(3, 1, 3, padding=1)
        self.gate = nn.Sigmoid() if gate == "sigmoid" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        largest, mean = over_channels(x)
        return x * self.gate(self.fuse(torch.cat((self.gradual(x), largest, mean), 1)))


class AugmentedChannelAttention(nn.Module):
    """Eq. 7–9: global averages W_a of a shallow feature, refined by W_r of a squeezed one."""

    def __init__(
        self, channels: int, norm: str = "batch", gate: str = "sigmoid", squeeze: str = "full"
    ) -> None:
        super().__init__()
        n = max(1, channels // SQUEEZES[one_of("squeeze", squeeze, tuple(SQUEEZES))])
        reduced = max(1, channels // REDUCTION)
        self.shallow = ConvUnit(channels, channels, norm=norm)  # F_s
        self.squeeze = ConvUnit(channels, n, stride=2, norm=norm)  # F_e, eq. 7
        self.refine = nn.Sequential(  # shared perception information, then W_r
            nn.Conv2d(n, reduced, 1), nn.ReLU(inplace=True), nn.Conv2d(reduced, channels, 1)
        )
        self.gate = nn.Sigmoid() if gate == "sigmoid" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.shallow(x)
        return x * self.gate(pooled(shallow) + self.refine(pooled(self.squeeze(shallow))))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018: weights of channels from their means through two dense layers.

    `hidden` is the width between them: C / 4 in MSA-Net's table 5, C in MUSICAL's released code.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION) if hidden is None else hidden
        self.excite = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(pooled(x)).sigmoid()


class CBAMChannel(nn.Module):
    """Woo et al. 2018, channel part: one MLP on mean- and max-pooled vectors, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.shared(pooled(x)) + self.shared(x.amax((2, 3), keepdim=True))).sigmoid()


class CBAMSpatial(nn.Module):
    """Woo et al. 2018, spatial part: 7×7 convolution of the mean and maximum over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        largest, mean = over_channels(x)
        return x * self.fuse(torch.cat((mean, largest), 1)).sigmoid()


class SCAChannel(nn.Module):
    """Chen et al. 2017 (SCA-CNN), channel part: softmax over C of w' · tanh(w ⊗ v + b) + b'.

    v are the channels' means; w and w' are k-vectors shared by all channels, as in that paper.
    The term for the caption decoder's state is dropped, as there is no decoder here. Multiplied by
    C, so that the mean weight is 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = max(1, channels // REDUCTION)
        self.score = nn.Sequential(nn.Conv1d(1, k, 1), nn.Tanh(), nn.Conv1d(k, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x.mean((2, 3)).unsqueeze(1)).squeeze(1)  # N×C
        with without_autocast(x):
            weights = scores.float().softmax(1) * x.shape[1]
        return x * weights.to(x.dtype)[:, :, None, None]


class SCASpatial(nn.Module):
    """Chen et al. 2017, spatial part: softmax over H·W of a 1×1 tanh layer, times H·W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = max(1, channels // REDUCTION)
        self.score = nn.Sequential(nn.Conv2d(channels, k, 1), nn.Tanh(), nn.Conv2d(k, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        scores = self.score(x)
        with without_autocast(x):
            weights = scores.float().flatten(1).softmax(1) * (height * width)
        return x * weights.to(x.dtype).unflatten(1, (1, height, width))


def channel_attention(
    kind: str, channels: int, norm: str, gate: str, squeeze: str = "full"
) -> nn.Module:
    """Build a channel attention by its name in a configuration; see CHANNEL."""
    one_of("channel attention", kind, CHANNEL)
    if kind == "augmented":
        return AugmentedChannelAttention(channels, norm, gate, squeeze)
    if kind == "none":
        return nn.Identity()
    return {"se": SqueezeExcitation, "cbam": CBAMChannel, "sca": SCAChannel}[kind](channels)


def spatial_attention(kind: str, channels: int, norm: str, gate: str) -> nn.Module:
    """Build a spatial attention by its name in a configuration; see SPATIAL."""
    one_of("spatial attention", kind, SPATIAL)
    if kind == "fusing":
        return FusingSpatialAttention(channels, norm, gate)
    if kind == "none":
        return nn.Identity()
    return {"cbam": CBAMSpatial, "sca": SCASpatial}[kind](channels)
