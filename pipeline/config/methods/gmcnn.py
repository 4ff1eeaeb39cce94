"""GMCNN: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.columns import LOCAL, column_sides
from pipeline.config.groups import ModelConfig, ObjectiveConfig, key

# Four halvings of the image and of a crop of half its side; the confidence's kernel reaches 32
# pixels.
DISCRIMINATOR = (32, 64)
FORMS = ("released", "paper")


@dataclass
class GmcnnModel(ModelConfig):
    name: str = "gmcnn"
    width: float = key(1.0, "multiplies every width", least=0.01)
    dilations: list[int] = key([2, 4, 8, 16], "dilations of the layers in the middle", least=1)

    def sides(self) -> tuple[int, int]:
        return column_sides(7, self.dilations)


@dataclass
class GmcnnObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    method: str = "gmcnn"
    l1: float = key(1.4, "weight of L1 in the hole by confidence, logged as g/l1", least=0.0)
    known: float = key(1.2, "weight of L1 outside the hole", least=0.0)
    id_mrf: float = key(0.05, "weight of the ID-MRF loss", least=0.0)
    adv: float = key(0.001, "weight of each critic's adversarial loss", least=0.0)
    span: float = key(2.0, "range that l1 and known are quoted for; 2: [-1, 1]", least=0.01)
    form: str = key("released", "ID-MRF: similarities by distance, or by cosine", FORMS)
    sigma: float | None = key(
        None, "deviation of the confidence's Gaussian, pixels; null: constant", least=0.01
    )
    local: str = key("crop", "local discriminator: of a crop, or of the masked image", LOCAL)
    d_width: float = key(1.0, "multiplies every width of the discriminator", least=0.01)

    def published(self) -> list[str]:
        return ["vgg19"] if self.id_mrf else []

    def discriminator_sides(self) -> tuple[int, int]:
        return DISCRIMINATOR
