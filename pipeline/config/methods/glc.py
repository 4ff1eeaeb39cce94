"""GLC: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.columns import LOCAL, column_sides
from pipeline.config.groups import OPTIMIZERS, ModelConfig, ObjectiveConfig, key

DISCRIMINATOR = (64, 64)  # six halvings of the image, five of a crop of half its side


@dataclass
class GlcModel(ModelConfig):
    name: str = "glc"
    width: float = key(1.0, "multiplies every width", least=0.01)
    dilations: list[int] = key([2, 4, 8, 16], "dilations of the layers in the middle", least=1)
    mean: list[float] = key(
        [0.4560, 0.4472, 0.4155], "mean color of the data, RGB, subtracted", least=0.0, most=1.0
    )

    def sides(self) -> tuple[int, int]:
        return column_sides(3, self.dilations)


@dataclass
class GlcObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    method: str = "glc"
    optimizer: str = key("adadelta", "optimizer", OPTIMIZERS)
    l2: float = key(1.0, "weight of the L2 loss in the hole, logged as g/l2", least=0.0)
    adv: float = key(4e-4, "weight of the adversarial loss", least=0.0)
    mean_over: str = key("all", "pixels that the L2 loss is a mean over", ("all", "hole"))
    judged: str = key("composite", "image that is judged", ("composite", "raw"))
    local: str = key("crop", "local discriminator: of a crop, or of the masked image", LOCAL)
    d_width: float = key(1.0, "multiplies every width of the discriminator", least=0.01)

    def discriminator_sides(self) -> tuple[int, int]:
        return DISCRIMINATOR

    def normalized(self, side: int) -> int:
        return (side // DISCRIMINATOR[0]) ** 2
