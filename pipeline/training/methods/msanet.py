"""MSA-Net's objective (eq. 11-16): L2, perceptual and style losses on its own features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from models import Prediction, losses
from models.layers import frozen_statistics
from models.masking import composite, erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class MSANet(Method):
    """One generator. Its features, or VGG16's, are compared with those of the original image."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        self.features = self.vgg16()

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator = self.players[0]
        prediction = generator(erase(image, mask), mask)
        output = (
            prediction.image if o.loss_on == "raw" else composite(prediction.image, image, mask)
        )
        ours, targets = self._compared(prediction, image) if o.perceptual or o.style else ((), ())

        # Eq. 16: the sum of eq. 11, 12 and 15 with weights 1, 0.001 and 250. Eq. 12 prints a
        # 2-norm; between features of VGG16, as related methods have it, the distance is L1.
        distance = "l2" if self.features is None else "l1"
        loss = Loss(generator)
        loss.add("g/l1", o.l1, lambda: losses.l1(output, image))
        loss.add("g/l2", o.l2, lambda: losses.l2(output, image))
        loss.add("g/perceptual", o.perceptual, lambda: losses.perceptual(ours, targets, distance))
        loss.add("g/style", o.style, lambda: losses.style(ours, targets))
        yield loss

    def _compared(
        self, prediction: Prediction, image: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Features of the prediction and of the original image."""
        if self.features is None:
            return list(prediction.features.values()), self.targets(image)
        with torch.no_grad():
            targets = self.features(image)
        return self.features(prediction.image), targets

    @torch.no_grad()
    def targets(self, image: Tensor) -> Sequence[Tensor]:
        """Features of the original image with the same weights, without a hole (eq. 12-14).

        Without gradient: otherwise shrinking all features would minimize the loss. Normalized by
        this batch's statistics, which do not enter the running ones. In evaluation mode by the
        running statistics: a rank may then run alone, and synchronized norms would wait for others.
        """
        generator = self.players[0].module
        with frozen_statistics(generator) if generator.training else nullcontext():
            whole = generator(image, image.new_zeros(image.shape[0], 1, *image.shape[2:]))
        return list(whole.features.values())


METHOD = MSANet
