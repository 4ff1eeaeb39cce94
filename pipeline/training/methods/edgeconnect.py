"""EdgeConnect's objective (Nazeri et al. 2019, sec. 3), with the weights of the authors' code.

G1 completes edges against D1, G2 fills images against D2. The phases are the authors' stages: G1
alone; G2 alone on true edges (`without: [predicted]`); G2 on the edges that G1 completed. G1 does
not learn from G2's losses, also if both learn: the released weights come from a G1 at rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models import losses
from models.canny import grayscale
from models.discriminators import PatchDiscriminator
from models.masking import erase
from models.vgg import PLAIN, VGG19Features
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method

CONTENT = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
STYLE = ("relu2_2", "relu3_4", "relu4_4", "relu5_2")


class EdgeConnect(Method):
    """Two generators, trained one after the other, each against a discriminator of patches."""

    paints = "generator.image"

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator("edges", "image")
        self.g1, self.g2 = self.players
        model: Any = config.model
        d1, d2 = (PatchDiscriminator(n, spectral=True, width=model.width) for n in (2, 3))
        self.d1 = self.player("discriminator.edges", d1)
        self.d2 = self.player("discriminator.image", d2)
        if self.objective.published():
            self.vgg = self.fix("vgg19", VGG19Features(PLAIN))

    def losses(self, batch: Batch) -> Iterator[Loss]:
        image, mask = batch.image, batch.mask
        erased = erase(image, mask)
        edges = self.generator.targets(image, mask)["edges"]
        if self.g1.learns or self.d1.learns or self.objective.predicted:
            logits, known = self.g1(erased, mask)
        if self.g1.learns or self.d1.learns:
            yield from self._of_edges(grayscale(image), edges, torch.sigmoid(logits))
        if self.g2.learns or self.d2.learns:
            if self.objective.predicted:
                completed = self.generator.completed(logits.detach(), known, mask)
                edges = torch.lerp(edges, completed, self.objective.predicted)
            yield from self._of_images(image, mask, self.g2(erased, mask, edges))

    def _of_edges(self, gray: Tensor, true: Tensor, ours: Tensor) -> Iterator[Loss]:
        """Sec. 3.1: adversarial and feature-matching losses of G1, the loss of D1."""
        o = self.objective
        real, targets = self.d1(torch.cat((gray, true), 1))
        judged, maps = self.d1.judge(torch.cat((gray, ours), 1))
        loss = Loss(self.g1)
        loss.add("g/edge_adv", o.edge_adv, lambda: losses.adversarial_generator(judged, "vanilla"))
        loss.add("g/matching", o.matching, lambda: losses.perceptual(maps, targets, "l1"))
        yield loss
        if self.d1.learns:
            fake, _ = self.d1(torch.cat((gray, ours.detach()), 1))
            loss = Loss(self.d1)
            loss.add(
                "d/edges", 1.0, lambda: losses.adversarial_discriminator(real, fake, "vanilla")
            )
            yield loss

    def _of_images(self, image: Tensor, mask: Tensor, ours: Tensor) -> Iterator[Loss]:
        """Sec. 3.2: L1, adversarial, perceptual and style losses of G2, the loss of D2."""
        o = self.objective
        loss = Loss(self.g2)
        loss.add("g/l1", o.l1, lambda: losses.l1(ours, image, per=mask))
        loss.add(
            "g/adv", o.adv, lambda: losses.adversarial_generator(self.d2.judge(ours)[0], "vanilla")
        )
        loss.add(
            "g/perceptual",
            o.perceptual,
            lambda: losses.perceptual(*self._compared(ours, image, CONTENT), "l1"),
        )
        # Of the hole alone, as in the authors' code.
        loss.add(
            "g/style",
            o.style,
            lambda: losses.style(*self._compared(ours * mask, image * mask, STYLE)),
        )
        yield loss
        if self.d2.learns:
            real, fake = self.d2(image)[0], self.d2(ours.detach())[0]
            loss = Loss(self.d2)
            loss.add(
                "d/image", 1.0, lambda: losses.adversarial_discriminator(real, fake, "vanilla")
            )
            yield loss

    def _compared(
        self, ours: Tensor, theirs: Tensor, taps: tuple[str, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """VGG19's features of two images, the second without gradient."""
        with torch.no_grad():
            targets = self.vgg(theirs, taps)
        return list(self.vgg(ours, taps).values()), list(targets.values())


METHOD = EdgeConnect
