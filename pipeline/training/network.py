"""A network in training, with its optimizer, its average and its BatchNorm statistics.

`engine` steps it, `checkpointing` saves it.

ZeRO splits optimizer states (stage 1), gradients (2) and weights (3) over ranks, by DeepSpeed. It
is called directly, because Accelerate's wrapper steps inside its backward, takes one network per
instance and needs the transformers package. Three of its defaults are switched off here: gradient
clipping at 1.0, compiling its CPU collectives at run time, and logging to stdout.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.layers import frozen_statistics

# DeepSpeed still calls collectives by the names they had before torch 2.13.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


@dataclass
class TrainableNetwork:
    """A network in training: raw, wrapped for the strategy, with its optimizer and average.

    Until `Engine.start`, `wrapped` is `module` itself, and a checkpoint may be restored into it.
    """

    name: str
    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None
    sharded: Sharded | None = None
    whole: nn.Module | None = None  # unsplit copy for validation, with ZeRO-3
    size: int = 0  # number of parameters
    learns: bool = True  # from the current batch
    _kept: list[Tensor] = field(default_factory=list)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the network; one that rests without gradient, and keeping its running statistics."""
        if self.learns:
            return self.wrapped(*inputs)
        with torch.no_grad(), self._statistics_kept():
            return self.module(*inputs)

    def judge(self, *inputs: Tensor) -> Any:
        """Run the network with gradients through it, but none of its parameters."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            with nullcontext() if self.learns else self._statistics_kept():
                return self.module(*inputs)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _statistics_kept(self) -> AbstractContextManager[None]:
        return frozen_statistics(self.module) if self.module.training else nullcontext()

    @property
    def file(self) -> tuple[str, str]:
        """The checkpoint file that holds the network, and the prefix of its tensors' names there.

        Players `generator.<part>` share the generator's file.
        """
        name, _, part = self.name.partition(".")
        return name, f"{part}." if part else ""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network and its average, if it has one, by their files in a checkpoint."""
        named, name = {self.file[0]: self.module}, f"{self.file[0]}_ema"
        return named if self.ema is None else {**named, name: self.ema}

    def weights(self) -> dict[str, Tensor]:
        """Return full weights and buffers by name. Every rank must call this, and `moments`."""
        return dict(self.module.state_dict()) if self.sharded is None else self.sharded.weights()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state by parameter; empty before its first step."""
        if self.sharded is not None:
            return self.sharded.moments()
        named, state = self.module.named_parameters(), self.optimizer.state
        return {name: state[p] for name, p in named if p in state}

    def evaluated(self) -> nn.Module:
        """Return the network to validate: the average if there is one; unsplit on every rank."""
        if self.ema is not None or self.whole is None:
            return self.module if self.ema is None else self.ema
        self.whole.load_state_dict(self.weights())
        return self.whole

    def snapshot_buffers(self) -> None:
        """Copy the buffers that forward passes change: running statistics of norms."""
        self._kept = [_flat(group) for group in self._buffers()]

    @torch.no_grad()
    def restore_buffers(self, where: Tensor | None = None) -> None:
        """Restore buffers to the snapshot: a non-finite running statistic would never recover.

        where: scalar bool on the device; they keep their values where it is false.
        """
        for buffers, kept in zip(self._buffers(), self._kept):
            if where is not None:
                kept = torch.where(where, kept, _flat(buffers))
            parts = kept.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [p.view(b.shape) for p, b in zip(parts, buffers)])

    def _buffers(self) -> list[list[Tensor]]:
        """The buffers by their dtype."""
        groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self.module.buffers():
            groups.setdefault(buffer.dtype, []).append(buffer)
        return list(groups.values())

    @torch.no_grad()
    def average(self, decay: float, where: Tensor | None = None) -> None:
        """Move the average, if there is one, toward the weights; copy buffers.

        where: scalar bool on the device; the average stays where it is false.
        """
        if self.ema is None:
            return
        weights, own = self.weights(), dict(self.ema.named_parameters())
        averages: list[Tensor] = list(own.values())
        ours = [weights[name] for name in own]
        if where is None:
            torch._foreach_lerp_(averages, ours, 1 - decay)
        else:  # no foreach form of lerp takes its weight from the device
            moves = torch._foreach_sub(ours, averages)
            torch._foreach_mul_(moves, where * (1 - decay))
            torch._foreach_add_(averages, list(moves))
        buffers = {n: buffer for n, buffer in self.ema.named_buffers() if n in weights}
        if buffers:
            torch._foreach_copy_(list(buffers.values()), [weights[name] for name in buffers])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class Sharded:
    """One network and its optimizer under ZeRO; forward passes call `engine`.

    Weights, buffers and the optimizer's state are taken over, with whatever was restored into them.
    Every rank must call every method.
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

    def norm(self) -> Tensor:
        """Return the norm of this rank's part of the averaged gradient."""
        return nn.utils.get_total_norm(self._gradients())

    def step(self, finite: bool) -> None:
        """Clip and step; without `finite`, on any network or rank, only drop gradients."""
        poisoned = [] if finite else self._gradients()
        for gradient in poisoned:
            gradient.fill_(float("nan"))  # DeepSpeed cannot drop gradients, but skips on NaN
        self.engine.step()
        for gradient in poisoned:
            gradient.zero_()  # stage 3 keeps the buffer and never writes its padding

    def total_norm(self) -> Tensor:
        """Return the last step's gradient norm over all ranks, before clipping; inf if skipped."""
        return torch.as_tensor(self.engine.get_global_grad_norm())

    def weights(self) -> dict[str, Tensor]:
        """Return full weights and buffers by name, as `state_dict` without ZeRO."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = dict(self.module.state_dict())
        if self.stage == 3:
            for name, parameter in self.module.named_parameters():
                weights[name] = safe_get_full_fp32_param(parameter)
        return weights

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's full state by parameter."""
        from deepspeed.utils import safe_get_full_optimizer_state

        mine: dict[str, Any] = next(iter(self.optimizer.state.values()), {})
        keys = sorted(key for key in mine if key != "step")  # the same order on every rank
        return {
            name: {
                **{key: safe_get_full_optimizer_state(parameter, key) for key in keys},
                "step": torch.as_tensor(mine["step"]),
            }
            for name, parameter in self.module.named_parameters()
            if mine
        }

    def _take_over(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Split the optimizer's state by parameter into this rank's partitions."""
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
            zero._lazy_init_hp_params_optimizer_state()  # otherwise its first step would
        for name, parameter in self.module.named_parameters():
            for key, value in states[name].items():
                if key == "step":
                    continue
                if self.stage < 3:
                    safe_set_full_optimizer_state(parameter, value, key)
                    continue
                # safe_set_full_* ignores that the last rank's partition is padded.
                size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
                whole = value.new_zeros(size * dist.get_world_size())
                whole[: value.numel()] = value.flatten()
                mine = whole.narrow(0, size * dist.get_rank(), size)
                safe_set_local_optimizer_state(parameter, mine, key)

    def _gradients(self) -> list[Tensor]:
        groups: Any = self.engine.optimizer.averaged_gradients.values()
        return [g for group in groups if group is not None for g in group if g is not None]
