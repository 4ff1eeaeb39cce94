"""A method: a generator, perhaps a discriminator, perhaps a network of features, and its terms.

One step of either paper: one forward of the damaged batch; MSA-Net's targets are a second forward,
of the original, without gradient; the discriminator is frozen while the generator is judged and
learns from the detached picture, and both step together, so that accumulation equals a big batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models import losses
from models.layers import frozen_statistics
from models.masking import composite, erase
from pipeline.checkpoint import build_generator
from pipeline.config import ObjectiveConfig, Phase, TrainConfig
from pipeline.engine import Engine, Trainee
from pipeline.objectives import Computed, Term, generator_terms, needs_features, optimizer, total


@dataclass
class Method:
    """The networks of a run and what they are trained towards."""

    objective: ObjectiveConfig
    terms: list[Term]
    generator: Trainee
    discriminator: Trainee | None = None
    features: nn.Module | None = None

    @property
    def trainees(self) -> list[Trainee]:
        return [t for t in (self.generator, self.discriminator) if t is not None]

    def set_rates(self, phase: Phase) -> None:
        """Learning rates of the step's phase."""
        for trainee in self.trainees:
            own = phase.d_lr if trainee is self.discriminator else None
            for group in trainee.optimizer.param_groups:
                group["lr"] = phase.lr if own is None else own


def build(config: TrainConfig, engine: Engine) -> Method:
    """Networks with fresh weights drawn from `seed`, on the device, wrapped for the strategy."""
    torch.manual_seed(config.seed)
    make = optimizer(config.objective)
    generator = build_generator(asdict(config.model))
    return Method(
        config.objective,
        generator_terms(config.objective),
        engine.train("generator", generator, make, average=config.ema > 0),
    )


def backward(method: Method, engine: Engine, image: Tensor, mask: Tensor, share: float) -> dict:
    """Forward and backward of one micro-batch of all networks; its terms, detached.

    image: N x 3 x H x W in [0, 1]; mask: N x 1 x H x W, 1 = hole; share: 1 / micro-batches.
    """
    with engine.autocast():
        prediction = method.generator.wrapped(erase(image, mask), mask)
        filled = composite(prediction.image, image, mask)
        computed = Computed(image, mask, prediction.image, filled)
        if needs_features(method.objective):
            targets = own_features(method.generator.module, image)
            computed = computed._replace(features=prediction.features, targets=targets)
        loss, values = total(method.terms, computed)
    engine.backward(loss * share, method.generator)
    return values


@torch.no_grad()
def own_features(generator: nn.Module, image: Tensor) -> Sequence[Tensor]:
    """MSA-Net's targets: the features of the original picture, with the same weights (eq. 12-14).

    Without gradient, or shrinking all features would be the easiest way to a small loss; with the
    batch's statistics, and the running ones left to the damaged pictures.
    """
    with frozen_statistics(generator):
        return generator(image, image.new_zeros(image.shape[0], 1, *image.shape[2:])).features


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters of `module` take no gradient inside."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


__all__ = ["Method", "backward", "build", "frozen", "losses", "own_features"]
