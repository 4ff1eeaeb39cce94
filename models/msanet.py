"""MSA-Net: multi-scale attention network for image inpainting (Qin, Bai, Zhao; CVIU 2021).

Fig. 1: feature extraction, a group of multi-scale attention units (MSAG), image restoration, with
a mask that is updated by max pooling (MUM) at every downsampling. The group's structures are in
`multiscale.py`, the attention modules in `attention.py`, the losses of eq. 11–16 in `losses.py`.

The paper does not say
- the number of units: three deconvolutions (eq. 10) each double the size, so three layers halve it:
  one of feature extraction and two MSAUs.
- widths other than MSAU_1's (table 1). `msanet.yaml` doubles them in MSAU_2, `msanet_const.yaml`
  keeps them.
- kernel sizes: 3×3, the first 5×5, deconvolutions 4×4 of stride 2.
- how the mask joins: one channel more at the input of each downsampling convolution (below eq. 1,
  "feature from previous layer and corresponding mask update layer"). Without MUM: at the
  network's input only.
- the norm: batch norm and no biases, the only choice that matches the counts of table 1.
- which maps enter eq. 12: the group's aggregated output and the first deconvolutions, before
  attention.
- skip connections: none. The images' range: [−1, 1] inside, behind a tanh.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import CHANNEL, GATES, SPATIAL, SQUEEZES, channel_attention, spatial_attention
from .layers import ConvUnit, DeconvUnit, Prediction, initialize_for_relu, one_of, scaled
from .masking import check_pair, erase, update_known
from .multiscale import DILATIONS, STRUCTURES, MultiScale


class MSAU(nn.Module):
    """Fig. 2: a downsampling convolution (eq. 1), the multi-scale structure, aggregation."""

    def __init__(
        self, in_channels: int, deep: int, scale: int, known: bool, norm: str, **structure: Any
    ) -> None:
        super().__init__()
        self.down = ConvUnit(in_channels + known, deep, stride=2, norm=norm)
        self.scales = MultiScale(deep, scale, norm=norm, **structure)
        self.out_channels = len(DILATIONS) * scale
        self.aggregate = ConvUnit(self.scales.out_channels, self.out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate(self.scales(self.down(x)))


class MSANet(nn.Module):
    """MSA-Net's generator; the defaults are its full model with MSAU_2 twice as wide.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction, whose features
    are the `taps` of eq. 12. H and W must be multiples of `multiple` and at least `smallest`.
    """

    def __init__(
        self,
        *,
        fe: Sequence[int] = (64, 64),
        msau: Sequence[Sequence[int]] = ((128, 48), (256, 96)),
        iru: Sequence[int] = (192, 96, 64),
        width: float = 1.0,
        structure: str = "msau",
        reduce: bool = True,
        mask_update: bool = True,
        channel: str = "augmented",
        spatial: str = "fusing",
        restore_channel: str = "augmented",
        restore_spatial: str = "fusing",
        norm: str = "batch",
        squeeze: str = "full",
        gate: str = "sigmoid",
        taps: int = 3,
    ) -> None:
        """
        fe: widths of feature extraction; the first layer keeps the size, each other halves it.
        msau: per unit, the width of F_D (the output of its downsampling convolution) and that of
            each of its four scales.
        iru: widths of image restoration; as many as there are halvings.
        width: multiplies every width (never below 4); below 1 for demonstrations.
        structure: msau, or single, inception_v1, inception_v3 of tables 1 and 2.
        reduce: Inception has a 1×1 of its own before the unit's aggregation; checkpoints of earlier
            versions do not name it and have one.
        mask_update: False is table 3's "No-MUM".
        channel, spatial: attention inside the units (table 4; se, cbam, sca of table 5).
        restore_channel, restore_spatial: the same in image restoration (eq. 10).
        norm: batch, instance or none. squeeze: n of eq. 7. gate: sigmoid or none on W_s and W_c.
        taps: how many maps `features` holds: the group's output, then deconvolutions.
        """
        super().__init__()
        for name, value, allowed in (
            ("structure", structure, STRUCTURES),
            ("channel", channel, CHANNEL),
            ("spatial", spatial, SPATIAL),
            ("restore_channel", restore_channel, CHANNEL),
            ("restore_spatial", restore_spatial, SPATIAL),
            ("gate", gate, GATES),
            ("squeeze", squeeze, tuple(SQUEEZES)),
        ):
            one_of(name, value, allowed)
        if not fe or not msau or any(len(unit) != 2 for unit in msau):
            raise ValueError(
                f"fe={list(fe)}, msau={[list(unit) for unit in msau]}; give fe one width or more, "
                "msau one pair or more: the width of F_D, that of each scale"
            )
        halvings = len(fe) - 1 + len(msau)
        if len(iru) != halvings:
            raise ValueError(
                f"fe={list(fe)} and msau={list(msau)} halve the image {halvings} times, "
                f"iru={list(iru)} doubles it {len(iru)} times; give iru {halvings} widths"
            )
        if not 1 <= taps <= 1 + len(iru):
            raise ValueError(f"taps={taps}; choose 1 to {1 + len(iru)} (the group, then deconvs)")
        self.mask_update, self.taps = mask_update, taps
        self.multiple = 2**halvings
        # The map of the first unit must reach beyond its largest dilation, whose outer taps would
        # otherwise see only padding.
        self.smallest = (DILATIONS[-1] + 1) * 2 ** len(fe)
        self.smallest += -self.smallest % self.multiple

        channels = scaled(fe[0], width)
        self.stem = ConvUnit(3 + 1, channels, 5, norm=norm)
        self.extract = nn.ModuleList()
        for out in fe[1:]:
            out = scaled(out, width)
            self.extract.append(ConvUnit(channels + mask_update, out, stride=2, norm=norm))
            channels = out
        self.group = nn.ModuleList()
        for deep, scale in msau:
            unit = MSAU(
                channels,
                scaled(deep, width),
                scaled(scale, width),
                mask_update,
                norm,
                structure=structure,
                reduce=reduce,
                channel=channel,
                spatial=spatial,
                gate=gate,
                squeeze=squeeze,
            )
            self.group.append(unit)
            channels = unit.out_channels
        self.restore = nn.ModuleList()
        self.attend = nn.ModuleList()
        for out in iru:
            out = scaled(out, width)
            self.restore.append(DeconvUnit(channels, out, norm))
            self.attend.append(
                nn.Sequential(
                    channel_attention(restore_channel, out, norm, gate, squeeze),
                    spatial_attention(restore_spatial, out, norm, gate),
                )
            )
            channels = out
        self.out = nn.Conv2d(channels, 3, 3, padding=1)
        initialize_for_relu(self)

    def forward(self, erased: Tensor, mask: Tensor) -> Prediction:
        check_pair(erased, mask, self.multiple, self.smallest)
        known = 1 - mask.to(erased.dtype)  # the paper's masks are 1 where the image is known
        x = self.stem(torch.cat((erase(erased * 2 - 1, mask), known), 1))
        for down in (*self.extract, *self.group):
            if self.mask_update:
                x = down(torch.cat((x, known.to(x.dtype)), 1))
                known = update_known(known)
            else:
                x = down(x)
        features = {"group": x}
        for i, (deconv, attend) in enumerate(zip(self.restore, self.attend), 1):
            x = deconv(x)
            if i < self.taps:
                features[f"deconv{i}"] = x
            x = attend(x)  # eq. 10: channel, then spatial
        image = (torch.tanh(self.out(x).float()) + 1) / 2
        return Prediction(image, features)
