"""MUSICAL's objective (eq. 4-7): L1, VGG16 perceptual and style, total variation, adversarial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models import losses
from models.densenet import DenseNetDiscriminator
from models.masking import composite, erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class Musical(Method):
    """A generator against a DenseNet-121; with an adversarial weight of 0 the generator alone."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        self.features = self.vgg16()
        if self.objective.adv:
            discriminator = DenseNetDiscriminator()
            self.load("densenet121", discriminator)
            self.player("discriminator", discriminator)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players[0], (*self.players[1:], None)[0]
        raw = generator(erase(image, mask), mask).image
        filled = composite(raw, image, mask)
        output = raw if o.loss_on == "raw" else filled
        ours, targets = self._compared(raw, filled, image)
        logits = discriminator.judge(raw) if discriminator and o.adv else raw

        # Weights of pixel losses are quoted for images in a range of `span`; here it is 1.
        loss = Loss(generator)
        loss.add("g/l1", o.l1 * o.span, lambda: losses.l1(output, image))
        loss.add("g/l1_hole", o.l1_hole * o.span, lambda: losses.l1(raw, image, mask))
        loss.add("g/perceptual", o.perceptual, lambda: losses.perceptual(ours, targets, "l1"))
        loss.add("g/style", o.style, lambda: losses.style(ours, targets))
        loss.add("g/tv", o.tv * o.span, lambda: losses.tv(raw))
        loss.add("g/adv", o.adv, lambda: losses.adversarial_generator(logits, o.gan))
        yield loss

        # Real and generated images in separate batches: BatchNorm would mix their statistics.
        if discriminator and discriminator.learns:
            real, fake = discriminator(image), discriminator(raw.detach())
            loss = Loss(discriminator)
            loss.add("d/loss", 1.0, lambda: losses.adversarial_discriminator(real, fake, o.gan))
            yield loss

    def _compared(
        self, raw: Tensor, filled: Tensor, image: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """VGG16's features of the output, or of output and composite, and of the original image."""
        if self.features is None:
            return (), ()
        with torch.no_grad():
            targets = self.features(image)
        features = self.features(raw)
        if self.objective.feature_images == "raw+composite":
            return (*features, *self.features(filled)), (*targets, *targets)
        return features, targets


METHOD = Musical
