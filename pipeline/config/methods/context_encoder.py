"""Context Encoder: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key

OUTPUTS = ("whole", "center")


@dataclass
class ContextEncoderModel(ModelConfig):
    name: str = "context_encoder"
    width: float = key(1.0, "multiplies every width", least=0.01)
    levels: int = key(6, "how often the size is halved, to 4x4 cells", least=4, most=10)
    output: str = key("whole", "what is predicted: the image or its middle half", OUTPUTS)
    bottleneck: int = key(4000, "width of the bottleneck", least=1)

    def sides(self) -> tuple[int, int]:
        return 2**self.levels, 4 * 2**self.levels

    def normalized(self, side: int) -> int:
        return int(side // 2**self.levels - 3) ** 2


@dataclass
class ContextEncoderObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    generators: ClassVar[tuple[str, ...]] = ("context_encoder",)

    method: str = "context_encoder"
    l2: float = key(0.999, "weight of the L2 loss, logged as g/l2", least=0.0)
    overlap: float = key(10.0, "factor of the L2 loss where the image is known", least=0.0)
    adv: float = key(0.001, "weight of the adversarial loss", least=0.0)
    span: float = key(2.0, "range that l2 is quoted for; 2: [-1, 1]", least=0.01)
    d_levels: int = key(6, "model.levels that the discriminator is built for", least=4, most=10)
    d_width: float = key(1.0, "multiplies every width of the discriminator", least=0.01)

    def discriminator_sides(self) -> tuple[int, int]:
        return 4 * 2**self.d_levels, 4 * 2**self.d_levels
