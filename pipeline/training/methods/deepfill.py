"""DeepFill's objective (Yu et al. 2018, sec. 3), with the weights of the authors' code (v1.0.0).

L1 of the coarse and the refined image, discounted toward the middle of the hole, and two WGAN
critics, of the composite and of its hole, whose gradient is penalized in the hole alone. The
critics learn from every batch, the generator from every fifth (`every`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from models import losses
from models.deepfill import critics
from models.masking import composite, erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class DeepFill(Method):
    """A generator with a coarse result against a global and a local critic."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        model: Any = config.model
        judges = critics(config.data.crop, model.width, self.objective.local)
        self.critics = self.player("discriminator", judges)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, known = self.players[0], 1 - mask
        prediction = generator(erase(image, mask), mask)
        filled = composite(prediction.image, image, mask)

        if generator.learns:
            near_the_edge = losses.discount(mask, o.gamma)
            refined = partial(losses.l1, prediction.image, image)
            coarse = partial(losses.l1, prediction.features["coarse"], image)
            loss = Loss(generator)
            # Weights of pixel losses are quoted for images in a range of `span`; here it is 1.
            for name, l1, weight in (("", refined, o.span), ("coarse_", coarse, o.coarse * o.span)):
                loss.add(f"g/{name}hole", o.hole * weight, partial(l1, near_the_edge, mask))
                loss.add(f"g/{name}known", o.known * weight, partial(l1, known, known))
            judged = self._judged(self.critics.judge(filled, mask)) if o.adv else mask
            loss.add("g/adv", o.adv, lambda: losses.adversarial_generator(judged, "wgan"))
            yield loss

        if self.critics.learns:
            fake = filled.detach()
            real, other = (self._judged(self.critics(x, mask)) for x in (image, fake))
            loss = Loss(self.critics)
            loss.add("d/loss", 1.0, lambda: losses.adversarial_discriminator(real, other, "wgan"))
            loss.add("d/penalty", o.penalty, lambda: self._penalty(batch, fake))
            yield loss

    def _judged(self, answer: tuple[Tensor, tuple[Tensor, ...]]) -> Tensor:
        """The sum of what both critics say of each image."""
        return answer[0].float().sum(1)

    def _penalty(self, batch: Batch, fake: Tensor) -> Tensor:
        """Penalty of each critic between real and filled images, in float32.

        By the modules themselves: gradients of gradients need no wrapper.
        """
        both: Any = self.critics.module
        real, hole = both.near(batch.image, batch.mask)
        return losses.gradient_penalty(
            lambda x: both.whole(x)[0], batch.image, fake, batch.uniform("whole"), batch.mask
        ) + losses.gradient_penalty(
            lambda x: both.local(x, hole)[0],
            real,
            both.near(fake, batch.mask)[0],
            batch.uniform("local"),
            hole,
        )


METHOD = DeepFill
