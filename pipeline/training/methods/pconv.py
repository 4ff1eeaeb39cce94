"""PConv's objective (Liu et al. 2018, eq. 3-8): L1, perceptual and style losses, TV at the hole.

All means are over the whole image, those of the hole too, as the authors say of their L1 losses.
In the second phase the encoder's norms keep their statistics (`frozen`): holes disturb them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models import losses
from models.masking import composite, erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class PConv(Method):
    """One generator; VGG16 compares its output and the composite with the original."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        self.features = self.vgg16()

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator = self.players[0]
        output = generator(erase(image, mask), mask).image
        filled = composite(output, image, mask)
        if self.features is not None and (o.perceptual or o.style):
            with torch.no_grad():
                targets = self.features(image) * 2
            ours = (*self.features(output), *self.features(filled))
        else:
            ours = targets = ()
        region = F.max_pool2d(mask, 3, 1, 1)  # the hole, grown by a pixel

        # Weights of pixel losses are quoted for images in a range of `span`; here it is 1.
        loss = Loss(generator)
        loss.add("g/known", o.known * o.span, lambda: losses.l1(output, image, 1 - mask))
        loss.add("g/hole", o.hole * o.span, lambda: losses.l1(output, image, mask))
        loss.add("g/perceptual", o.perceptual, lambda: losses.perceptual(ours, targets, "l1"))
        loss.add("g/style", o.style, lambda: losses.style(ours, targets))
        loss.add("g/tv", o.tv * o.span, lambda: losses.tv(filled, region))
        yield loss


METHOD = PConv
