"""A network in training, with its optimiser, its average and its statistics.

What a strategy needs of it lies in `engine`; what is saved of it in `checkpointing`.

ZeRO: optimizer states (stage 1), gradients (2) and weights (3) split over ranks, by DeepSpeed,
which is driven directly: Accelerate's own wrapper steps inside its backward, takes one network per
instance and needs a further package. What it does unasked is switched off here: clipping at 1.0,
the compiler run for its CPU collectives, its log on stdout.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# DeepSpeed still calls collectives by the names they had before torch 2.13.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


@dataclass
class TrainableNetwork:
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

    def snapshot_buffers(self) -> None:
        """Keep what forward passes change beside gradients: running statistics of norms."""
        buffers = list(self.module.buffers())
        if not self._kept:
            self._kept = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._kept, buffers)

    @torch.no_grad()
    def restore_buffers(self) -> None:
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


class Sharded:
    """One network and its optimiser under ZeRO. `engine` is what forward passes call.

    Weights, buffers and the optimiser's state by parameter are taken over as they are, so that
    whatever was restored into them before goes on. Every rank must call every method.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, stage: int, clip: float | None
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils.logging import logger

        logger.setLevel("ERROR")  # it writes to stdout, where results go
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # built by g++ at run time
        named, state = module.named_parameters(), optimizer.state
        before = {name: state[p] for name, p in named if p in state}
        optimizer.state.clear()
        self.module, self.optimizer, self.stage = module, optimizer, stage
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # counted by the loop, not here
                "gradient_clipping": clip or 0.0,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
        if before:
            self._take_over(before)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def norm(self) -> Tensor:
        """Norm of this rank's share of the averaged gradient."""
        return nn.utils.get_total_norm(self._gradients())

    def step(self, finite: bool) -> None:
        """Clip and step; where not `finite`, on whichever network and rank, only drop gradients."""
        poisoned = [] if finite else self._gradients()
        for gradient in poisoned:
            gradient.fill_(float("nan"))  # DeepSpeed has no call that drops them, but skips
        self.engine.step()
        for gradient in poisoned:
            gradient.zero_()  # stage 3 keeps its buffer, and never writes where it is padded

    def weights(self) -> dict[str, Tensor]:
        """Full weights and buffers by name, as `state_dict` has them without ZeRO."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = dict(self.module.state_dict())
        if self.stage == 3:
            for name, parameter in self.module.named_parameters():
                found[name] = safe_get_full_fp32_param(parameter)
        return found

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's full state by parameter."""
        from deepspeed.utils import safe_get_full_optimizer_state

        mine: dict[str, Any] = next(iter(self.optimizer.state.values()), {})
        keys = sorted(key for key in mine if key != "step")  # one order on every rank
        return {
            name: {
                **{key: safe_get_full_optimizer_state(parameter, key) for key in keys},
                "step": torch.as_tensor(mine["step"]),
            }
            for name, parameter in self.module.named_parameters()
            if mine
        }

    def _take_over(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Cut the optimiser's state by parameter into this rank's partitions."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        zero, like = self.engine.optimizer, next(iter(states.values()))
        flat = (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )
        for partition in flat:
            self.optimizer.state[partition] = {
                key: value.clone() if key == "step" else torch.zeros_like(partition)
                for key, value in like.items()
            }
        if self.stage < 3:
            zero._lazy_init_hp_params_optimizer_state()  # else only its first step does
        for name, parameter in self.module.named_parameters():
            for key, value in states[name].items():
                if key == "step":
                    continue
                if self.stage < 3:
                    safe_set_full_optimizer_state(parameter, value, key)
                    continue
                # safe_set_full_* does not know that the last rank's share is padded.
                size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
                whole = value.new_zeros(size * dist.get_world_size())
                whole[: value.numel()] = value.flatten()
                mine = whole.narrow(0, size * dist.get_rank(), size)
                safe_set_local_optimizer_state(parameter, mine, key)

    def _gradients(self) -> list[Tensor]:
        groups: Any = self.engine.optimizer.averaged_gradients.values()
        return [g for group in groups if group is not None for g in group if g is not None]
