"""Context Encoder's objective: L2, larger where the image is known, and an adversarial loss.

The discriminator sees what is predicted, the image or its middle, and not what is around it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from models import losses
from models.context_encoder import middle, overlap_l2
from models.discriminators import StackDiscriminator
from models.masking import erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method


class ContextEncoder(Method):
    """A generator against the discriminator of DCGAN."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        o, side = self.objective, config.data.crop
        side, halvings = (side // 2, o.d_levels - 1) if self._center else (side, o.d_levels)
        widths = (*[64] * (halvings - 3), 128, 256, 512)
        discriminator = StackDiscriminator(
            side, widths, kernel=4, norm="batch", bias=False, head="conv", width=o.d_width
        )
        self.player("discriminator", discriminator)

    @property
    def _center(self) -> bool:
        return bool(self.generator.center)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players
        raw = generator(erase(image, mask), mask).image
        if self._center:
            raw, image, mask = middle(raw), middle(image), middle(mask)

        def judged() -> Tensor:
            return losses.adversarial_generator(discriminator.judge(raw)[0], "vanilla")

        # Weights of pixel losses are quoted for images in a range of `span`; here it is 1.
        loss = Loss(generator)
        loss.add("g/l2", o.l2 * o.span**2, lambda: overlap_l2(raw, image, mask, o.overlap))
        loss.add("g/adv", o.adv, judged)
        yield loss

        # The sum of both terms, of which `adversarial_discriminator` is the mean.
        if discriminator.learns:
            real, fake = discriminator(image)[0], discriminator(raw.detach())[0]
            loss = Loss(discriminator)
            loss.add("d/loss", 2.0, lambda: losses.adversarial_discriminator(real, fake, "vanilla"))
            yield loss


METHOD = ContextEncoder
