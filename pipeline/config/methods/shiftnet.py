"""Shift-Net: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key

PATCH_DISCRIMINATOR = (8, 24)  # what divides the sides of images that fit it, and their least


@dataclass
class ShiftnetModel(ModelConfig):
    name: str = "shiftnet"
    width: float = key(1.0, "multiplies every width", least=0.01)
    levels: int = key(8, "how often the size is halved; 8 take 256 to one cell", least=4, most=10)

    def sides(self) -> tuple[int, int]:
        return 2**self.levels, 2**self.levels


@dataclass
class ShiftnetObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    generators: ClassVar[tuple[str, ...]] = ("shiftnet",)

    method: str = "shiftnet"
    l1: float = key(1.0, "weight of the L1 loss, logged as g/l1", least=0.0)
    guidance: float = key(0.01, "weight of the guidance loss", least=0.0)
    adv: float = key(0.002, "weight of the adversarial loss", least=0.0)
    span: float = key(2.0, "range that l1 is quoted for; 2: [-1, 1]", least=0.01)
    d_width: float = key(1.0, "multiplies every width of the discriminator", least=0.01)

    def discriminator_sides(self) -> tuple[int, int]:
        return PATCH_DISCRIMINATOR
