"""MUSICAL: the network's options and the objective's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.common.errors import ConfigError
from pipeline.config.groups import ModelConfig, ObjectiveConfig, key

DISCRIMINATOR = (32, 96)  # what divides the sides of images that fit it, and their least


@dataclass
class MusicalModel(ModelConfig):
    name: str = "musical"
    ngf: int = key(64, "width of the first layer", least=1)
    attention: str = key("multi", "contextual attention", ("multi", "single", "direct", "none"))
    order: str = key("paper", "order of the attention's steps", ("paper", "released"))
    temperature: float = key(10.0, "factor of the cosine in softmax; none in the paper", least=0.0)
    propagation: int = key(1, "k of eq. 2; not given in the paper", least=0, most=8)
    renormalize: str = key("all", "keys whose weights add up to 1", ("copyable", "all"))

    def sides(self) -> tuple[int, int]:
        if self.attention == "direct" and self.order != "released":
            raise ConfigError(
                f"model.attention=direct is of model.order=released, not of {self.order}: give "
                "model.order=released, or model.attention=single"
            )
        return 16, 48


@dataclass
class MusicalObjective(ObjectiveConfig):
    networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    method: str = "musical"
    l1: float = key(0.0, "weight of the L1 loss, logged as g/l1", least=0.0)
    l1_hole: float = key(0.0, "weight of L1 inside the hole", least=0.0)
    perceptual: float = key(0.0, "weight of the perceptual loss, logged as g/perceptual", least=0.0)
    style: float = key(0.0, "weight of the style loss, logged as g/style", least=0.0)
    tv: float = key(0.0, "weight of total variation, logged as g/tv", least=0.0)
    span: float = key(1.0, "range that l1, l1_hole and tv are quoted for; 2: [-1, 1]", least=0.01)
    adv: float = key(0.0, "weight of the adversarial loss; 0 builds no discriminator", least=0.0)
    features: str = key("vgg16", "perceptual and style features", ("vgg16",))
    loss_on: str = key("raw", "image that the pixel losses compare", ("raw", "composite"))
    feature_images: str = key("raw", "images given to VGG16", ("raw", "raw+composite"))
    vgg_normalize: bool = key(True, "ImageNet normalization before VGG16")
    gan: str = key("vanilla", "adversarial loss", ("vanilla", "lsgan"))
    d_pretrained: bool = key(True, "start the discriminator from ImageNet weights")

    @property
    def players(self) -> tuple[str, ...]:
        return self.networks if self.adv else self.networks[:1]

    def published(self) -> list[str]:
        vgg16 = ["vgg16"] if self.perceptual or self.style else []
        return vgg16 + (["densenet121"] if self.adv and self.d_pretrained else [])

    def discriminator_sides(self) -> tuple[int, int] | None:
        return DISCRIMINATOR if self.adv else None
