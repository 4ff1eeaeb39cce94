"""A method: its networks (generator, discriminator, feature extractor), loss terms and optimizers.

In one step of either method the generator runs forward once, on the erased batch. MSA-Net's feature
targets come from a second forward pass, of the original images, without gradient. The discriminator
is frozen in the generator's pass, then learns from the detached output; both step together, so that
accumulating micro-batches equals one large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import losses
from models.densenet import DenseNetDiscriminator
from models.layers import frozen_statistics
from models.losses import adversarial_discriminator
from models.masking import composite, erase
from models.vgg import VGG16Features
from pipeline.config.groups import ObjectiveConfig, Phase
from pipeline.config.schema import RANDOM, TrainConfig
from pipeline.runs.checkpoints import build_generator
from pipeline.training import pretrained, weights
from pipeline.training.engine import Engine
from pipeline.training.network import TrainableNetwork


@dataclass
class Method:
    """The networks of a run and their objective."""

    objective: ObjectiveConfig
    terms: list[Term]
    generator: TrainableNetwork
    discriminator: TrainableNetwork | None = None
    features: nn.Module | None = None
    pretrained: dict[str, str] = field(default_factory=dict)  # sha256 of the file, or "random"

    @property
    def players(self) -> list[TrainableNetwork]:
        return [t for t in (self.generator, self.discriminator) if t is not None]

    def set_rates(self, phase: Phase) -> None:
        """Set the learning rates of the current phase."""
        for player in self.players:
            own = phase.d_lr if player is self.discriminator else None
            for group in player.optimizer.param_groups:
                group["lr"] = phase.lr if own is None else own


def build(config: TrainConfig, engine: Engine) -> Method:
    """Build networks with weights drawn from `seed`, on the device; `Engine.start` wraps them.

    VGG16 and the discriminator's backbone load their published weights from `weights=`. With an
    adversarial weight of 0 no discriminator is built.
    """
    torch.manual_seed(config.seed)
    objective = config.objective
    make = optimizer(objective)
    generator: Any = build_generator(asdict(config.model))
    wanted = pretrained.needed(objective)
    method = Method(
        objective,
        generator_terms(objective),
        engine.prepare("generator", generator, make, average=config.ema > 0),
    )
    if "vgg16" in wanted:
        method.features = VGG16Features(normalize=objective.vgg_normalize)
        method.pretrained["vgg16"] = _load("vgg16", method.features, config, engine)
        method.features.to(engine.device)
    if objective.adv:
        discriminator = DenseNetDiscriminator()
        method.pretrained["densenet121"] = (
            _load("densenet121", discriminator, config, engine)
            if "densenet121" in wanted
            else RANDOM
        )
        method.discriminator = engine.prepare("discriminator", discriminator, make)
    return method


def _load(name: str, network: nn.Module, config: TrainConfig, engine: Engine) -> str:
    """Load published weights into `network`; returns the sha256 of the published file, or "random".

    Rank 0 reads them for all ranks, so that every node trains with the same features.
    """
    if config.weights == RANDOM:
        return RANDOM
    data = engine.from_main(lambda: pretrained.read(config.weights, name))
    return weights.load(data, network, pretrained.place(config.weights, name))


def backward(
    method: Method, engine: Engine, image: Tensor, mask: Tensor, share: float
) -> dict[str, Tensor]:
    """Run forward and backward of all networks on one micro-batch; returns its detached terms.

    image: N x 3 x H x W in [0, 1]; mask: N x 1 x H x W, 1 = hole; share: 1 / micro-batches.
    """
    discriminator = method.discriminator
    # The generator: one forward pass, its losses, its gradient.
    with engine.autocast():
        prediction = method.generator.wrapped(erase(image, mask), mask)
        filled = composite(prediction.image, image, mask)
        features, targets = _features(method, prediction.features, prediction.image, filled, image)
        computed = Computed(image, mask, prediction.image, filled, features, targets)
        if discriminator is None:
            loss, values = total(method.terms, computed)
        else:
            with frozen(discriminator.module):
                computed = computed._replace(logits=discriminator.module(prediction.image))
                loss, values = total(method.terms, computed)
    engine.backward(loss * share, method.generator)
    # The discriminator: real and generated images in separate batches, because BatchNorm would mix
    # their statistics in one.
    if discriminator is not None:
        with engine.autocast():
            real = discriminator.wrapped(image)
            fake = discriminator.wrapped(prediction.image.detach())
            loss = adversarial_discriminator(real, fake, method.objective.gan)
        engine.backward(loss * share, discriminator)
        values["d/loss"] = loss.detach()
    return values


def _features(
    method: Method, own: Sequence[Tensor], raw: Tensor, filled: Tensor, image: Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Features and targets of the perceptual and style losses: the generator's own, or VGG16's."""
    if not pretrained.compares_features(method.objective):
        return (), ()
    if method.features is None:
        return own, own_features(method.generator.module, image)
    with torch.no_grad():
        targets = method.features(image)
    features = method.features(raw)
    if method.objective.feature_images == "raw+composite":
        return (*features, *method.features(filled)), (*targets, *targets)
    return features, targets


@torch.no_grad()
def own_features(generator: nn.Module, image: Tensor) -> Sequence[Tensor]:
    """MSA-Net's targets: features of the original image with the same weights (eq. 12-14).

    Without gradient: otherwise shrinking all features would minimize the loss. Normalized by this
    batch's statistics, which do not enter the running ones. In evaluation mode by the running
    statistics: a rank may then run alone, and synchronized norms would wait for other ranks.
    """
    with frozen_statistics(generator) if generator.training else nullcontext():
        return generator(image, image.new_zeros(image.shape[0], 1, *image.shape[2:])).features


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of the parameters of `module`, only gradients through it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Computed(NamedTuple):
    """One micro-batch: images in [0, 1], N x 3 x H x W; mask N x 1 x H x W, 1 = hole.

    features, targets: feature maps of generated and original images, one pair per layer.
    logits: the discriminator's output for generated images; None without a discriminator.
    """

    image: Tensor
    mask: Tensor
    prediction: Tensor
    composite: Tensor
    features: Sequence[Tensor] = ()
    targets: Sequence[Tensor] = ()
    logits: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A weighted loss, named as it is logged."""

    name: str
    weight: float
    value: Callable[[Computed], Tensor]


def generator_terms(objective: ObjectiveConfig) -> list[Term]:
    """List the generator's loss terms with a weight other than 0."""
    distance = "l2" if objective.features == "internal" else "l1"

    def pixels(c: Computed) -> Tensor:
        return c.composite if objective.loss_on == "composite" else c.prediction

    def adversarial(c: Computed) -> Tensor:
        assert c.logits is not None
        return losses.adversarial_generator(c.logits, objective.gan)

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
        Term("g/adv", objective.adv, adversarial),
    ]
    return [term for term in terms if term.weight]


def total(terms: Sequence[Term], computed: Computed) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum to differentiate, and each term unweighted for the log."""
    values = {term.name: term.value(computed) for term in terms}
    loss = torch.stack([term.weight * values[term.name] for term in terms]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


def optimizer(objective: ObjectiveConfig) -> Callable[[Sequence[nn.Parameter]], Any]:
    """Return a constructor of the recipe's optimizer; `set_rates` sets its learning rate."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[objective.optimizer]
    betas = (objective.betas[0], objective.betas[1])
    return lambda parameters: kind(parameters, lr=0.0, betas=betas, fused=True)
