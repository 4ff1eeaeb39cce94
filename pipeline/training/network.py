"""A network in training, with its optimiser, its average and its statistics.

What a strategy needs of it lies in `engine`; what is saved of it in `checkpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.training.zero import Sharded


@dataclass
class Trainee:
    """A network in training: raw, as wrapped for its strategy, its optimiser, its average.

    Until `Engine.start`, `wrapped` is `module` itself, and weights and optimiser may be restored.
    """

    name: str
    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None
    sharded: Sharded | None = None
    whole: nn.Module | None = None  # of a network whose own weights are split: ZeRO-3
    size: int = 0  # weights
    _kept: list[Tensor] = field(default_factory=list)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint names: the network and, where there is one, its average."""
        named = {self.name: self.module}
        return named if self.ema is None else {**named, f"{self.name}_ema": self.ema}

    def weights(self) -> dict[str, Tensor]:
        """Full weights and buffers by name. Every rank must call this, and `moments`."""
        return dict(self.module.state_dict()) if self.sharded is None else self.sharded.weights()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by parameter; empty before its first step."""
        if self.sharded is not None:
            return self.sharded.moments()
        named, state = self.module.named_parameters(), self.optimizer.state
        return {name: state[p] for name, p in named if p in state}

    def evaluated(self) -> nn.Module:
        """The network to judge: averaged where there is an average, whole on every rank."""
        if self.ema is not None or self.whole is None:
            return self.module if self.ema is None else self.ema
        self.whole.load_state_dict(self.weights())
        return self.whole

    def keep_statistics(self) -> None:
        """Keep what forward passes change beside gradients: running statistics of norms."""
        buffers = list(self.module.buffers())
        if not self._kept:
            self._kept = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._kept, buffers)

    @torch.no_grad()
    def forget_statistics(self) -> None:
        """Undo what forward passes did since: a number that is not finite would stay for ever."""
        for buffer, kept in zip(self.module.buffers(), self._kept):
            buffer.copy_(kept)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the average, where there is one, towards the weights; buffers are copied."""
        if self.ema is None:
            return
        weights, own = self.weights(), dict(self.ema.named_parameters())
        ours = [weights[name] for name in own]
        torch._foreach_lerp_(list(own.values()), ours, 1 - decay)
        for name, buffer in self.ema.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])
