"""MSA-Net: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.common.errors import ConfigError
from pipeline.config.groups import ModelConfig, ObjectiveConfig, key

STRUCTURES = ("msau", "single", "inception_v1", "inception_v3")
CHANNEL = ("augmented", "none", "se", "cbam", "sca")
SPATIAL = ("fusing", "none", "cbam", "sca")


@dataclass
class MsanetModel(ModelConfig):
    features: ClassVar[bool] = True

    name: str = "msanet"
    fe: list[int] = key([64, 64], "extraction widths; all but the first downsample", least=1)
    msau: list[list[int]] = key(
        [[128, 48], [256, 96]], "per MSAU: width of F_D and of each scale", least=1
    )
    iru: list[int] = key([192, 96, 64], "widths of the restoration units", least=1)
    width: float = key(1.0, "multiplies every width", least=0.01)
    structure: str = key("msau", "multi-scale structure (tables 1, 2)", STRUCTURES)
    reduce: bool = key(True, "Inception has a 1x1 of its own before the unit's aggregation")
    mask_update: bool = key(True, "max-pooling mask update (table 3)")
    channel: str = key("augmented", "channel attention in the MSAUs", CHANNEL)
    spatial: str = key("fusing", "spatial attention in the MSAUs", SPATIAL)
    restore_channel: str = key("augmented", "channel attention in restoration", CHANNEL)
    restore_spatial: str = key("fusing", "spatial attention in restoration", SPATIAL)
    norm: str = key("batch", "normalization; not given in the paper", ("batch", "instance", "none"))
    squeeze: str = key("full", "n of eq. 7; not given in the paper", ("full", "half", "quarter"))
    gate: str = key("sigmoid", "attention's gate; not given in the paper", ("sigmoid", "none"))
    taps: int = key(3, "feature maps in the perceptual and style losses", least=1)

    def sides(self) -> tuple[int, int]:
        halvings = len(self.fe) - 1 + len(self.msau)
        pairs = all(len(unit) == 2 for unit in self.msau)
        if len(self.iru) != halvings or not pairs or self.taps > halvings + 1:
            raise ConfigError(
                f"model.iru={self.iru} does not fit model.fe={self.fe}, model.msau={self.msau} and "
                f"model.taps={self.taps}: give iru {halvings} widths, each unit of msau two, and "
                f"taps at most {halvings + 1}"
            )
        multiple, reach = 2**halvings, 9 * 2 ** len(self.fe)
        return multiple, reach + -reach % multiple


@dataclass
class MsanetObjective(ObjectiveConfig):
    l1: float = key(0.0, "weight of the L1 loss, logged as g/l1", least=0.0)
    l2: float = key(0.0, "weight of the L2 loss, logged as g/l2", least=0.0)
    perceptual: float = key(0.0, "weight of the perceptual loss, logged as g/perceptual", least=0.0)
    style: float = key(0.0, "weight of the style loss, logged as g/style", least=0.0)
    features: str = key("internal", "perceptual and style features", ("internal", "vgg16"))
    vgg_normalize: bool = key(True, "ImageNet normalization before VGG16")
    loss_on: str = key("raw", "image that the pixel losses compare", ("raw", "composite"))

    def published(self) -> list[str]:
        compares = self.perceptual or self.style
        return ["vgg16"] if compares and self.features == "vgg16" else []

    def compares_features(self) -> bool:
        return bool(self.perceptual or self.style) and self.features == "internal"
