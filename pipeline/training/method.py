"""What a method is: its networks, and what each of them learns from a batch.

A subclass, one file of `pipeline/training/methods` each, builds the networks and yields one `Loss`
after another; `backward` differentiates each before the next is computed. All networks that learn
from a batch step together, so that accumulating micro-batches equals one large batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from models.vgg import VGG16Features
from pipeline.common.errors import ConfigError
from pipeline.config.phases import Turn, rates_of
from pipeline.config.schema import RANDOM, TrainConfig
from pipeline.runs.checkpoints import build_generator
from pipeline.training import pretrained, weights
from pipeline.training.engine import Engine
from pipeline.training.network import TrainableNetwork


class Batch(NamedTuple):
    """A micro-batch: images N x 3 x H x W in [0, 1]; masks N x 1 x H x W, 1 = hole.

    positions: of its samples in the order of the data; empty where nothing is drawn from them.
    """

    image: Tensor
    mask: Tensor
    positions: Sequence[int] = ()
    seed: int = 0

    def uniform(self, name: str) -> Tensor:
        """Draw N x 1 x 1 x 1 numbers in [0, 1), fixed by seed, sample and `name`.

        A resumed run draws the same numbers, on any number of ranks.
        """
        stream = int.from_bytes(name.encode()[:8], "little")
        drawn = [
            np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=p)).random()
            for p in self.positions
        ]
        noise = torch.tensor(drawn, dtype=torch.float32).view(-1, 1, 1, 1)
        return noise.to(self.image.device, non_blocking=True)


class Loss:
    """What one player learns from: a sum of weighted terms, by their names in the log."""

    def __init__(self, player: TrainableNetwork) -> None:
        self.player = player
        self.values: dict[str, Tensor] = {}
        self._weights: list[float] = []

    def add(self, name: str, weight: float, value: Callable[[], Tensor]) -> None:
        """Add `weight` times a scalar, which is not computed for a weight of 0."""
        if weight and self.player.learns:
            self.values[name] = value()
            self._weights.append(weight)

    def total(self) -> Tensor:
        values = self.values.values()
        return torch.stack([w * v for w, v in zip(self._weights, values, strict=True)]).sum()


class Method:
    """The networks of a run: `players`, each trained by an optimizer of its own, and fixed ones.

    generator: what fills holes, whole; its parts may be players of their own, `generator.<part>`.
    pretrained: sha256 of each network's published weights, or "random".
    fixed: those of `pretrained` that do not learn, and that no checkpoint holds.
    paints: the players, by the start of their names, whose weights make the colors of images.
    trains_image: whether one of these learns in the current phase.
    """

    paints = "generator"

    def __init__(self, config: TrainConfig, engine: Engine) -> None:
        """Build networks with weights drawn from `seed`, on the device; `Engine.start` wraps them.

        Subclasses build the generator first: the seed is set here.
        """
        torch.manual_seed(config.seed)
        self.config, self.engine = config, engine
        self.objective: Any = config.objective
        self.players: list[TrainableNetwork] = []
        self.pretrained: dict[str, str] = {}
        self.fixed: list[str] = []
        self.trains_image = True

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the loss of each player that learns, in order."""
        raise NotImplementedError

    # --- for the constructors of subclasses

    def build_generator(self, *parts: str) -> None:
        """Build the configured generator, to be trained whole or in `parts`, its submodules."""
        average = self.config.ema > 0
        self.generator: Any = build_generator(asdict(self.config.model))
        for part in parts:
            self.player(f"generator.{part}", self.generator.get_submodule(part), average)
        if not parts:
            self.player("generator", self.generator, average)

    def player(self, name: str, module: nn.Module, average: bool = False) -> TrainableNetwork:
        """Add a network that learns."""
        made = self.engine.prepare(name, module, optimizer(self.objective), average)
        self.players.append(made)
        return made

    def load(self, name: str, network: nn.Module) -> None:
        """Load the published weights of `name`, if the objective starts from them.

        Rank 0 reads them for all ranks, so that every node trains with the same features.
        """
        given, wanted = self.config.weights, name in self.objective.published()
        self.pretrained[name] = RANDOM
        if wanted and given != RANDOM:
            data = self.engine.from_main(lambda: pretrained.read(given, name))
            self.pretrained[name] = weights.load(data, network, pretrained.place(given, name))

    def fix(self, name: str, network: nn.Module) -> Any:
        """Load a network that does not learn, and that no checkpoint holds."""
        self.load(name, network)
        self.fixed.append(name)
        return network.to(self.engine.device)

    def vgg16(self) -> VGG16Features | None:
        """Build VGG16 up to its third pooling, if the objective compares its features."""
        if "vgg16" not in self.objective.published():
            return None
        network = VGG16Features(normalize=self.objective.vgg_normalize)
        features: VGG16Features = self.fix("vgg16", network)
        return features

    # --- for the loop

    def begin(self, turn: Turn) -> None:
        """Prepare the networks for a batch: who learns, at which rate.

        A phase's frozen norms are set each time, as validation ends in training mode.
        """
        without: dict[str, Any] = dict.fromkeys(turn.phase.without, 0.0)
        self.objective = replace(self.config.objective, **without)
        rates = rates_of(turn.phase, [player.name for player in self.players])
        self.trains_image = any(r and name.startswith(self.paints) for name, r in rates.items())
        for player in self.players:
            player.learns = player.name in turn.rates
            player.module.train()
            for group in player.optimizer.param_groups if player.learns else ():
                group["lr"] = turn.rates[player.name]
        for name in turn.phase.frozen:
            for layer in self._module(name).modules():
                if isinstance(layer, _NormBase):
                    layer.eval()

    def _module(self, name: str) -> nn.Module:
        """Look up a module by the name of its player and its own, such as generator.encoder."""
        for player in self.players:
            if f"{name}.".startswith(f"{player.name}."):
                try:
                    return player.module.get_submodule(name[len(player.name) + 1 :])
                except AttributeError:
                    break
        known = [
            f"{p.name}.{child}" for p in self.players for child, _ in p.module.named_children()
        ]
        raise ConfigError(
            f"objective.phases name the frozen module {name}, which does not exist: expected "
            f"{', '.join(known)}"
        )

    @property
    def learning(self) -> list[TrainableNetwork]:
        """The players that learn from the current batch."""
        return [player for player in self.players if player.learns]

    @property
    def fillers(self) -> list[TrainableNetwork]:
        """The players that the generator consists of."""
        return [p for p in self.players if p.name.partition(".")[0] == "generator"]

    def evaluated(self) -> nn.Module:
        """Return the generator to validate: averaged weights if there are any."""
        if len(self.fillers) == 1:
            return self.fillers[0].evaluated()
        whole = copy.copy(self.generator)
        whole._modules = dict(whole._modules)
        for player in self.fillers:
            setattr(whole, player.name.partition(".")[2], player.evaluated())
        return whole


def build(config: TrainConfig, engine: Engine) -> Method:
    """Build the networks of the configured method; its file's `METHOD` is the class."""
    module = import_module(f"pipeline.training.methods.{config.objective.method}")
    method: Method = module.METHOD(config, engine)
    return method


def backward(method: Method, engine: Engine, batch: Batch, share: float) -> dict[str, Tensor]:
    """Run forward and backward of all players on one micro-batch; returns its detached terms.

    share: 1 / micro-batches.
    """
    values: dict[str, Tensor] = {}
    losses = method.losses(batch)
    while True:
        with engine.autocast():
            loss = next(losses, None)
            if loss is None:
                return values
            total = loss.total() if loss.values else None
        if total is not None:
            engine.backward(total * share, loss.player)
        values |= {name: value.detach() for name, value in loss.values.items()}


def optimizer(objective: Any) -> Callable[[Sequence[nn.Parameter]], Any]:
    """Return a constructor of the recipe's optimizer; `Method.begin` sets its learning rate."""
    if objective.optimizer == "adadelta":
        return lambda parameters: torch.optim.Adadelta(parameters, lr=0.0)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[objective.optimizer]
    betas = (objective.betas[0], objective.betas[1])
    return lambda parameters: kind(parameters, lr=0.0, betas=betas, fused=True)
