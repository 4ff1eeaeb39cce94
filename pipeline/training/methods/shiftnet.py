"""Shift-Net's objective: L1, guidance of the decoder's features in the hole, adversarial.

The shift layer passes no gradient to the decoder: the guidance loss alone teaches it to resemble,
in the hole, what the encoder makes of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models import losses
from models.discriminators import PatchDiscriminator
from models.masking import erase
from models.shiftnet import guidance
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class ShiftNet(Method):
    """A generator against a PatchGAN, which judges the whole raw output."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        width = self.objective.d_width
        self.player("discriminator", PatchDiscriminator(norm="batch", width=width, signed=True))

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players
        raw, features = generator(erase(image, mask), mask)

        def guided() -> Tensor:
            return guidance(features["decoder"], self.targets(image, mask)["decoder"], mask)

        def judged() -> Tensor:
            return losses.adversarial_generator(discriminator.judge(raw)[0], "vanilla")

        # Weights of pixel losses are quoted for images in a range of `span`; here it is 1.
        loss = Loss(generator)
        loss.add("g/l1", o.l1 * o.span, lambda: losses.l1(raw, image))
        loss.add("g/guidance", o.guidance, guided)
        loss.add("g/adv", o.adv, judged)
        yield loss

        if discriminator.learns:
            real, fake = discriminator(image)[0], discriminator(raw.detach())[0]
            loss = Loss(discriminator)
            loss.add("d/loss", 1.0, lambda: losses.adversarial_discriminator(real, fake, "vanilla"))
            yield loss

    @torch.no_grad()
    def targets(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the encoder makes of the original image; its norms keep no statistics."""
        generator: Any = self.generator
        return dict(generator.targets(image, mask))


METHOD = ShiftNet
