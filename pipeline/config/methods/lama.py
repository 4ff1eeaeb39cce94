"""LaMa: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key


@dataclass
class LamaModel(ModelConfig):
    name: str = "lama"
    width: float = key(1.0, "multiplies every width", least=0.01)
    blocks: int = key(9, "residual blocks in the middle; 18: Big LaMa", least=1)

    def sides(self) -> tuple[int, int]:
        return 8, 16


@dataclass
class LamaObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    method: str = "lama"
    known: float = key(10.0, "weight of L1 outside the hole", least=0.0)
    perceptual: float = key(30.0, "weight of the perceptual loss", least=0.0)
    adv: float = key(10.0, "weight of the adversarial loss", least=0.0)
    matching: float = key(100.0, "weight of feature matching", least=0.0)
    penalty: float = key(0.001, "weight of the discriminator's gradient penalty", least=0.0)
    vgg_normalize: bool = key(True, "ImageNet normalization before VGG16")
    d_width: float = key(1.0, "multiplies every width of the discriminator", least=0.01)

    def published(self) -> list[str]:
        return ["vgg16"] if self.perceptual else []

    def discriminator_sides(self) -> tuple[int, int]:
        return 8, 24

    def penalized(self) -> bool:
        return self.penalty > 0
