"""PConv: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key


@dataclass
class PconvModel(ModelConfig):
    name: str = "pconv"
    levels: int = key(7, "how often the size is halved", least=1, most=10)
    width: float = key(1.0, "multiplies every width", least=0.01)
    stem_bias: bool = key(False, "the first layer has a bias, as MMagic's")
    fill: bool = key(False, "the output corrects a smooth fill of the holes")

    def sides(self) -> tuple[int, int]:
        return 2**self.levels, 2 * 2**self.levels


@dataclass
class PconvObjective(ObjectiveConfig):
    method: str = "pconv"
    known: float = key(1.0, "weight of L1 outside the hole", least=0.0)
    hole: float = key(6.0, "weight of L1 inside the hole", least=0.0)
    perceptual: float = key(0.05, "weight of the perceptual loss", least=0.0)
    style: float = key(120.0, "weight of each of the two style losses", least=0.0)
    tv: float = key(0.1, "weight of total variation in the hole", least=0.0)
    span: float = key(2.0, "range that known, hole and tv are quoted for; 2: [-1, 1]", least=0.01)
    vgg_normalize: bool = key(True, "ImageNet normalization before VGG16")

    def published(self) -> list[str]:
        return ["vgg16"] if self.perceptual or self.style else []
