"""EdgeConnect: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.groups import ModelConfig, ObjectiveConfig, key


@dataclass
class EdgeconnectModel(ModelConfig):
    name: str = "edgeconnect"
    width: float = key(1.0, "multiplies every width, the discriminators' too", least=0.01)
    merge_edges: bool = key(True, "take known edges outside the hole; false: predicted ones alone")

    def sides(self) -> tuple[int, int]:
        return 4, 16


@dataclass
class EdgeconnectObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = (
        *("generator.edges", "generator.image"),
        *("discriminator.edges", "discriminator.image"),
    )
    generators: ClassVar[tuple[str, ...]] = ("edgeconnect",)

    method: str = "edgeconnect"
    edge_adv: float = key(1.0, "weight of the adversarial loss of edges", least=0.0)
    matching: float = key(10.0, "weight of feature matching, of edges", least=0.0)
    l1: float = key(1.0, "weight of L1 over the share of the hole", least=0.0)
    adv: float = key(0.1, "weight of the adversarial loss of images", least=0.0)
    perceptual: float = key(0.1, "weight of the perceptual loss", least=0.0)
    style: float = key(250.0, "weight of the style loss", least=0.0)
    predicted: float = key(
        1.0, "weight of predicted edges against true ones where images are trained", least=0.0
    )

    def published(self) -> list[str]:
        return ["vgg19"] if self.perceptual or self.style else []

    def discriminator_sides(self) -> tuple[int, int] | None:
        return 8, 24
