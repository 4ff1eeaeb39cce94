"""What the configurations of all methods share: a generator's, and an objective's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from pipeline.config.keys import key
from pipeline.config.phases import Phase

OPTIMIZERS = ("adam", "adamw", "adadelta")


@dataclass
class ModelConfig:
    """A generator: its name, and as further keys the options of its class in `models`."""

    name: str = key("msanet", "the generator")

    def sides(self) -> tuple[int, int]:
        """Return what divides the sides of images that fit the network, and their least."""
        raise NotImplementedError


@dataclass
class ObjectiveConfig:
    """A method: what each of its networks learns, by weights of losses and a schedule."""

    networks: ClassVar[tuple[str, ...]] = ("generator",)

    method: str = key("msanet", "the method, a file of pipeline/training/methods")
    optimizer: str = key("adam", "optimizer", OPTIMIZERS)
    betas: list[float] = key([0.9, 0.999], "Adam's decay rates", least=0.0, below=1.0)
    phases: list[Phase] = key([], "learning rates by images_seen")

    @property
    def players(self) -> tuple[str, ...]:
        """The networks that learn, each by an optimizer of its own."""
        return self.networks

    def published(self) -> list[str]:
        """List the networks that start from published weights."""
        return []

    def discriminator_sides(self) -> tuple[int, int] | None:
        """Return what divides the sides of images that fit the discriminator, and their least."""
        return None

    def weights(self) -> dict[str, float]:
        """Return the weights of the losses by name."""
        named = (f.name for f in fields(self) if f.metadata.get("help", "").startswith("weight "))
        return {name: getattr(self, name) for name in named}
