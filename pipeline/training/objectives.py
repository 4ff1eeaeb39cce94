"""What is trained towards: loss terms as records, phases as records.

A term is a pure function of what the step computed. MSA-Net (eq. 11-16) measures features of its
own network; MUSICAL (eq. 4-7) those of VGG16, and has a discriminator where its weight is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import losses
from pipeline.config.groups import ObjectiveConfig


class Computed(NamedTuple):
    """One micro-batch: images in [0, 1], N x 3 x H x W; mask N x 1 x H x W, 1 = hole.

    features, targets: maps of the generated and the original pictures, one pair a layer.
    judged: the discriminator's logits of the generated pictures, None without one.
    """

    image: Tensor
    mask: Tensor
    prediction: Tensor
    composite: Tensor
    features: Sequence[Tensor] = ()
    targets: Sequence[Tensor] = ()
    judged: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A weighted loss, named as it is logged."""

    name: str
    weight: float
    value: Callable[[Computed], Tensor]


def generator_terms(objective: ObjectiveConfig) -> list[Term]:
    """The generator's terms whose weight is not 0."""
    distance = "l2" if objective.features == "internal" else "l1"

    def pixels(c: Computed) -> Tensor:
        return c.composite if objective.loss_on == "composite" else c.prediction

    def judged(c: Computed) -> Tensor:
        assert c.judged is not None
        return losses.adversarial_generator(c.judged, objective.gan)

    terms = [
        Term("g/l1", objective.l1, lambda c: losses.l1(pixels(c), c.image)),
        Term("g/l1_hole", objective.l1_hole, lambda c: losses.l1(c.prediction, c.image, c.mask)),
        Term("g/l2", objective.l2, lambda c: losses.l2(pixels(c), c.image)),
        Term(
            "g/perceptual",
            objective.perceptual,
            lambda c: losses.perceptual(c.features, c.targets, distance),
        ),
        Term("g/style", objective.style, lambda c: losses.style(c.features, c.targets)),
        Term("g/tv", objective.tv, lambda c: losses.tv(c.prediction)),
        Term("g/adv", objective.adv, judged),
    ]
    return [term for term in terms if term.weight]


def total(terms: Sequence[Term], computed: Computed) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum that is differentiated, and each term unweighted, as it is logged."""
    values = {term.name: term.value(computed) for term in terms}
    loss = torch.stack([term.weight * values[term.name] for term in terms]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


def needs_features(objective: ObjectiveConfig) -> bool:
    return bool(objective.perceptual or objective.style)


def optimizer(objective: ObjectiveConfig) -> Callable[[Sequence[nn.Parameter]], Any]:
    """A maker of the recipe's optimiser; its learning rate is set before every step."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[objective.optimizer]
    betas = (objective.betas[0], objective.betas[1])
    return lambda parameters: kind(parameters, lr=0.0, betas=betas, fused=True)
