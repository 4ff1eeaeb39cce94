"""GLC's objective: L2 in the hole, then a discriminator of the image and of what is near the hole.

The paper trains in three phases, which the recipe's rates are: the completion network with the L2
loss alone, the discriminator alone, then both with L2 + 0.0004 x the adversarial loss.
"""

from __future__ import annotations

from collections.abc import Iterator

from models import losses
from models.discriminators import GlobalLocal, StackDiscriminator
from models.glc import completion_l2
from models.masking import composite, erase
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Loss, Method

LOCAL = (64, 128, 256, 512, 512)  # widths; the global half has one layer more


class GLC(Method):
    """A completion network against two discriminators whose answers one linear layer joins."""

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        super().__init__(config, engine)
        self.build_generator()
        side, local, width = config.data.crop, self.objective.local, self.objective.d_width

        def half(side: int, widths: tuple[int, ...], head: str) -> StackDiscriminator:
            return StackDiscriminator(
                side, widths, norm="batch", act="relu", head=head, out=1024, width=width,
                signed=False, init="relu",
            )  # fmt: skip

        # Holes of any shape have no window around them: their local half sees the whole image, and
        # its map of answers is averaged over the hole.
        near = half(side // 2, LOCAL, "linear") if local == "crop" else half(side, LOCAL, "masked")
        pair = GlobalLocal(half(side, (*LOCAL, 512), "linear"), near, joint=True)
        self.player("discriminator", pair)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        o, image, mask = self.objective, batch.image, batch.mask
        generator, discriminator = self.players
        raw = generator(erase(image, mask), mask).image
        judged = composite(raw, image, mask) if o.judged == "composite" else raw

        # The norm of M (C(x, M) - x), and the generator's side of the game, weighted by alpha.
        loss = Loss(generator)
        loss.add("g/l2", o.l2, lambda: completion_l2(raw, image, mask, o.mean_over))
        loss.add(
            "g/adv",
            o.adv,
            lambda: losses.adversarial_generator(discriminator.judge(judged, mask)[0], "vanilla"),
        )
        yield loss

        # The discriminator's side: log D of images and log (1 - D) of what was completed.
        if discriminator.learns:
            real = discriminator(image, mask)[0]
            fake = discriminator(judged.detach(), mask)[0]
            loss = Loss(discriminator)
            loss.add("d/loss", 1.0, lambda: losses.adversarial_discriminator(real, fake, "vanilla"))
            yield loss


METHOD = GLC
