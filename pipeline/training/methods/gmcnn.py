"""GMCNN's objective: L1 by confidence, ID-MRF of VGG19's features, and two critics.

At first the generator learns alone, by L1; then a batch of five teaches it, and each the critics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from models import losses
from models.discriminators import GlobalLocal, StackDiscriminator, crop, hole_window
from models.id_mrf import confidence, id_mrf
from models.masking import composite, erase
from models.vgg import VGG19Features
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method

LAYERS = {"relu3_2": 1, "relu4_2": 2}  # of VGG19, with the weights of their terms in ID-MRF


class GMCNN(Method):
    """A generator against a critic of the image and one of what is near the hole."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        if self.objective.id_mrf:
            self.features = self.fix("vgg19", VGG19Features())
        side, local = config.data.crop, self.objective.local

        def critic(side: int, head: str) -> StackDiscriminator:
            return StackDiscriminator(
                side, (64, 128, 256, 256), act="elu", spectral=True, head=head,
                width=self.objective.d_width,
            )  # fmt: skip

        near = critic(side // 2, "linear") if local == "crop" else critic(side, "masked")
        self.player("discriminator", GlobalLocal(critic(side, "linear"), near))

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players
        raw = generator(erase(image, mask), mask).image
        filled = composite(raw, image, mask)

        def believed() -> Tensor:
            return losses.l1(raw, image, confidence(mask, sigma=o.sigma or math.inf), per=mask)

        def judged() -> Tensor:
            return losses.adversarial_generator(discriminator.judge(filled, mask)[0], "hinge")

        # Weights of pixel losses are quoted for images in a range of `span`; here it is 1. Losses
        # of the two critics add up, where their mean is logged.
        loss = Loss(generator)
        loss.add("g/l1", o.l1 * o.span, believed)
        loss.add("g/known", o.known * o.span, lambda: losses.l1(raw, image, 1 - mask, 1 - mask))
        loss.add("g/id_mrf", o.id_mrf, lambda: self._unlike(filled, image, mask))
        loss.add("g/adv", 2 * o.adv, judged)
        yield loss

        if discriminator.learns:
            real = discriminator(image, mask)[0]
            fake = discriminator(filled.detach(), mask)[0]
            loss = Loss(discriminator)
            loss.add("d/loss", 2.0, lambda: losses.adversarial_discriminator(real, fake, "hinge"))
            yield loss

    def _unlike(self, filled: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """ID-MRF between both images, in the window of half their side around the hole."""
        side = image.shape[2] // 2
        corner = hole_window(mask, side)
        ours = self.features(crop(filled, corner, side), LAYERS)
        with torch.no_grad():
            theirs = self.features(crop(image, corner, side), LAYERS)
        a, b = ([maps[name] for name in LAYERS] for maps in (ours, theirs))
        return id_mrf(a, b, tuple(LAYERS.values()), self.objective.form)


METHOD = GMCNN
