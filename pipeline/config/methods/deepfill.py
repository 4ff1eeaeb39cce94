"""DeepFill ("CA"): the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key


@dataclass
class DeepfillModel(ModelConfig):
    name: str = "deepfill"
    width: float = key(1.0, "multiplies every width, the critics' too", least=0.01)

    def sides(self) -> tuple[int, int]:
        return 8, 72


@dataclass
class DeepfillObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    generators: ClassVar[tuple[str, ...]] = ("deepfill",)

    method: str = "deepfill"
    hole: float = key(1.2, "weight of the discounted L1 in the hole, over its share", least=0.0)
    known: float = key(1.2, "weight of L1 outside the hole, over its share", least=0.0)
    coarse: float = key(1.2, "weight of both for the coarse image", least=0.0)
    gamma: float = key(0.9, "discount of L1 per pixel from the hole's edge", least=0.0, most=1.0)
    span: float = key(2.0, "range that hole and known are quoted for; 2: [-1, 1]", least=0.01)
    adv: float = key(0.001, "weight of the adversarial loss", least=0.0)
    penalty: float = key(10.0, "weight of the gradient penalty of each critic", least=0.0)
    local: str = key("crop", "what the local critic judges; masked: any hole", ("crop", "masked"))

    def discriminator_sides(self) -> tuple[int, int] | None:
        return (32, 32) if self.local == "crop" else (16, 16)

    def penalized(self) -> bool:
        return self.penalty > 0
