"""MSA-Net's multi-scale attention unit and the structures that table 1 compares with it.

Qin, Bai, Zhao: Multi-scale attention network for image inpainting, CVIU 2021, fig. 2, table 1.

The printed parameter counts determine the structures: weights of the branches (and of the 1×1
"reduce" convolution), with a 128-channel F_D, no biases, no norms, no attention. In the extracted
table the last "Conv 1×1, 64" is under Inception V3; the widths 512 and 304 of the concatenations
and the totals show that it belongs after V1's max pooling.

The paper does not say
- the dilation of the single-scale structure of table 2 (2 here), nor its width: 128 → 192, which
  costs exactly what MSAU costs (221,184).
- where Inception's 1×1 "reduce" is: it is the unit's aggregation, which every structure has
  (`reduce` false); with `reduce` it is one more before that, as in earlier versions.
- what MSAU_2 looks like for Inception: all widths times F_D / 128.
- where attention would sit in Inception: on each branch and on the concatenation, as in MSAU.
"""

import torch
from torch import Tensor, nn

from .attention import channel_attention, spatial_attention
from .layers import ConvUnit, one_of, scaled

STRUCTURES = ("msau", "single", "inception_v1", "inception_v3")
DILATIONS = (1, 2, 4, 8)
SINGLE_DILATION = 2


def branches(structure: str, channels: int, scale: int, norm: str) -> list[tuple[nn.Module, int]]:
    """The parallel branches of a structure on `channels` maps, each with its output width."""
    one_of("structure", structure, STRUCTURES)
    if structure == "msau":  # eq. 2
        return [(ConvUnit(channels, scale, dilation=r, norm=norm), scale) for r in DILATIONS]
    if structure == "single":
        width = len(DILATIONS) * scale
        return [(ConvUnit(channels, width, dilation=SINGLE_DILATION, norm=norm), width)]

    def chain(*steps: tuple[int, int]) -> tuple[nn.Module, int]:
        """Convolutions given as (kernel, width in the table)."""
        units, width = [], channels
        for kernel, printed in steps:
            out = scaled(printed * channels / 128)
            units.append(ConvUnit(width, out, kernel, norm=norm))
            width = out
        return nn.Sequential(*units), width

    pooling, pooled_width = chain((1, 64))
    pooled = (nn.Sequential(nn.MaxPool2d(3, 1, 1), pooling), pooled_width)
    if structure == "inception_v1":
        return [chain((1, 192)), chain((1, 96), (3, 192)), chain((3, 24), (1, 64)), pooled]
    return [chain((3, 192)), chain((1, 32), (3, 48), (3, 48)), pooled]


class MultiScale(nn.Module):
    """Branches with their spatial attention (eq. 2–3), concatenated, channel attention (eq. 4).

    N×channels×H×W → N×out_channels×H×W: 4·scale, but Inception's concatenation without `reduce`.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        structure: str,
        channel: str,
        spatial: str,
        norm: str,
        gate: str,
        squeeze: str,
        reduce: bool = False,
    ) -> None:
        super().__init__()
        parts = branches(structure, channels, scale, norm)
        total = sum(width for _, width in parts)
        self.out_channels = total
        self.branches = nn.ModuleList(branch for branch, _ in parts)
        self.spatial = nn.ModuleList(
            spatial_attention(spatial, width, norm, gate) for _, width in parts
        )
        self.channel = channel_attention(channel, total, norm, gate, squeeze)
        self.reduce: nn.Module = nn.Identity()
        if reduce and structure.startswith("inception"):
            self.out_channels = len(DILATIONS) * scale
            self.reduce = ConvUnit(total, self.out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        scales = [attend(branch(x)) for branch, attend in zip(self.branches, self.spatial)]
        joined = torch.cat(scales, 1) if len(scales) > 1 else scales[0]
        return self.reduce(self.channel(joined))
