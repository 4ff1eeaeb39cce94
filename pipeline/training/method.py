"""A method: a generator, perhaps a discriminator, perhaps a network of features, and its terms.

One step of either paper: one forward of the damaged batch; MSA-Net's targets are a second forward,
of the original, without gradient; the discriminator is frozen while the generator is judged and
learns from the detached picture, and both step together, so that accumulation equals a big batch.
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
from pipeline.common.errors import ConfigError
from pipeline.config.groups import ObjectiveConfig, Phase
from pipeline.config.schema import RANDOM, TrainConfig
from pipeline.runs.checkpoints import build_generator
from pipeline.training import pretrained, weights
from pipeline.training.engine import Engine
from pipeline.training.network import TrainableNetwork


@dataclass
class Method:
    """The networks of a run and what they are trained towards."""

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
        """Learning rates of the step's phase."""
        for player in self.players:
            own = phase.d_lr if player is self.discriminator else None
            for group in player.optimizer.param_groups:
                group["lr"] = phase.lr if own is None else own


def build(config: TrainConfig, engine: Engine) -> Method:
    """Networks with fresh weights drawn from `seed`, on the device, wrapped for the strategy.

    VGG16 and the discriminator's backbone take their published weights from `weights=`. With an
    adversarial weight of 0 no discriminator is built.
    """
    torch.manual_seed(config.seed)
    objective = config.objective
    make = optimizer(objective)
    generator: Any = build_generator(asdict(config.model))
    for name, side in (("data.crop", config.data.crop), ("validate.size", config.validate.size)):
        if side % generator.multiple or side < generator.smallest:
            raise ConfigError(
                f"{name}={side}: this {config.model.name} takes multiples of {generator.multiple} "
                f"from {generator.smallest} on"
            )
    grid, least = DenseNetDiscriminator.multiple, DenseNetDiscriminator.smallest
    if objective.adv and (config.data.crop % grid or config.data.crop < least):
        raise ConfigError(
            f"data.crop={config.data.crop}: the discriminator takes multiples of {grid} from "
            f"{least} on; or train without one, objective.adv=0"
        )
    wanted = pretrained.needed(objective)
    method = Method(
        objective,
        generator_terms(objective),
        engine.train("generator", generator, make, average=config.ema > 0),
    )
    if "vgg16" in wanted:
        method.features = VGG16Features(normalize=objective.vgg_normalise)
        method.pretrained["vgg16"] = _load("vgg16", method.features, config, engine)
        method.features.to(engine.device)
    if objective.adv:
        discriminator = DenseNetDiscriminator()
        method.pretrained["densenet121"] = (
            _load("densenet121", discriminator, config, engine)
            if "densenet121" in wanted
            else RANDOM
        )
        method.discriminator = engine.train("discriminator", discriminator, make)
    return method


def _load(name: str, network: nn.Module, config: TrainConfig, engine: Engine) -> str:
    """Published weights into `network`; sha256 of the publisher's file, or "random".

    Rank 0 reads them for all, so that no node trains towards other features than the rest.
    """
    if config.weights == RANDOM:
        return RANDOM
    found: Any = None
    if engine.is_main:
        try:
            found = pretrained.read(config.weights, name)
        except (ValueError, OSError) as error:
            found = error
    found = engine.broadcast_object(found)
    if isinstance(found, Exception):
        raise found
    return weights.load(found, network, pretrained.place(config.weights, name))


def backward(
    method: Method, engine: Engine, image: Tensor, mask: Tensor, share: float
) -> dict[str, Tensor]:
    """Forward and backward of one micro-batch of all networks; its terms, detached.

    image: N x 3 x H x W in [0, 1]; mask: N x 1 x H x W, 1 = hole; share: 1 / micro-batches.
    """
    judge = method.discriminator
    with engine.autocast():
        prediction = method.generator.wrapped(erase(image, mask), mask)
        filled = composite(prediction.image, image, mask)
        features, targets = _features(method, prediction.features, prediction.image, filled, image)
        computed = Computed(image, mask, prediction.image, filled, features, targets)
        if judge is None:
            loss, values = total(method.terms, computed)
        else:
            with frozen(judge.module):
                computed = computed._replace(judged=judge.module(prediction.image))
                loss, values = total(method.terms, computed)
    engine.backward(loss * share, method.generator)
    if judge is not None:
        with engine.autocast():
            real, fake = judge.wrapped(image), judge.wrapped(prediction.image.detach())
            loss = adversarial_discriminator(real, fake, method.objective.gan)
        engine.backward(loss * share, judge)
        values["d/loss"] = loss.detach()
    return values


def _features(
    method: Method, own: Sequence[Tensor], raw: Tensor, filled: Tensor, image: Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What perceptual and style losses compare: the generator's own maps, or VGG16's."""
    if not needs_features(method.objective):
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
    """MSA-Net's targets: the features of the original picture, with the same weights (eq. 12-14).

    Without gradient, or shrinking all features would be the easiest way to a small loss; with the
    batch's statistics, and the running ones left to the damaged pictures. In evaluation mode with
    the running ones: a rank may then be alone, and synchronised norms would wait for the others.
    """
    with frozen_statistics(generator) if generator.training else nullcontext():
        return generator(image, image.new_zeros(image.shape[0], 1, *image.shape[2:])).features


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters of `module` take no gradient inside; gradients go through it."""
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
