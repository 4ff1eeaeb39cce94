"""LaMa's objective (Suvorov et al. 2022, eq. 3-6), with the weights of the authors' code.

The discriminator says of each patch whether a hole is in it; the known patches of a filled image
are real. Its gradient at real images is penalized (R1), and its features are matched. The paper's
high receptive field perceptual loss compares features of a dilated ResNet50 for segmentation, of
which no weights are at hand: VGG16's stand in for it, with its weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models import losses
from models.discriminators import PatchDiscriminator
from models.masking import erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method
from pipeline.training.sync_batchnorm import differentiable_twice


class LaMa(Method):
    """A generator against a discriminator of patches; both judge its output, not the composite."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        self.features = self.vgg16()
        width = self.objective.d_width
        self.player("discriminator", PatchDiscriminator(norm="batch", width=width, deep=True))

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players
        raw = generator(erase(image, mask), mask).image
        real, targets = discriminator(image)
        judged, maps = discriminator.judge(raw)
        matched = len(maps) - 1  # the logits are not

        loss = Loss(generator)
        loss.add("g/known", o.known, lambda: losses.l1(raw, image, 1 - mask))
        loss.add("g/perceptual", o.perceptual, lambda: self._perceptual(raw, image))
        loss.add("g/adv", o.adv, lambda: losses.adversarial_generator(judged, "vanilla"))
        loss.add(
            "g/matching", o.matching / matched, lambda: losses.perceptual(maps[:-1], targets[:-1])
        )
        yield loss

        if discriminator.learns:
            fake = discriminator(raw.detach())[0]
            known = 1 - F.interpolate(mask, fake.shape[2:])
            loss = Loss(discriminator)
            # Losses of real and filled images add up, where their mean is logged.
            loss.add(
                "d/loss",
                2.0,
                lambda: losses.adversarial_discriminator(real, fake, "vanilla", known),
            )
            loss.add("d/penalty", o.penalty, lambda: self._penalty(image))
            yield loss

    def _perceptual(self, raw: Tensor, image: Tensor) -> Tensor:
        assert self.features is not None
        with torch.no_grad():
            targets = self.features(image)
        return losses.perceptual(self.features(raw), targets)

    def _penalty(self, image: Tensor) -> Tensor:
        """R1, by the module itself: gradients of gradients need no wrapper."""
        judge = self.players[1].module
        with differentiable_twice(judge):
            return losses.real_penalty(lambda x: judge(x)[0], image)


METHOD = LaMa
