"""Processes, devices, precision, gradients: the only file that knows Accelerate.

Everything above it speaks of networks and losses. Collectives are few and named here: gradients
(DDP, or ZeRO in `zero.py`), synchronised statistics, one vote a step, means of losses at log time.
"""

from __future__ import annotations

import copy
import faulthandler
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import choose_precision, thread_count, uses_gpu
from pipeline.training.network import STAGES, Sharded, TrainableNetwork
from pipeline.training.sync_batchnorm import synchronised
from pipeline.training.watchdog import FIRST

warnings.filterwarnings("ignore", message=r".*broadcast_buffers.*", category=FutureWarning)

# Until every process is there: images are pulled, and modules read from cold disks, meanwhile.
RENDEZVOUS = timedelta(seconds=1800)
AFTER_WATCH = timedelta(seconds=120)  # `Watch` names who hangs; then a collective may give up
LEAVING = 60.0  # seconds, from the end of training to the process's


def _say_who_is_waited_for(place: Mapping[str, str]) -> None:
    """A node that does not come is a silence of half an hour: this is the line before it."""
    world, here = place.get("WORLD_SIZE", "1"), place.get("LOCAL_WORLD_SIZE")
    if here not in (None, world) and place.get("LOCAL_RANK") == "0":
        print(
            f"rank {place['RANK']}: {world} processes meet at {place['MASTER_ADDR']}:"
            f"{place['MASTER_PORT']}, up to {RENDEZVOUS.seconds // 60} minutes from now",
            file=sys.stderr,
            flush=True,
        )


class Engine:
    """One process's place in the run and everything that depends on it."""

    def __init__(self, config: TrainConfig) -> None:
        faulthandler.cancel_dump_traceback_later()  # of one before, in this process
        world = int(os.environ.get("WORLD_SIZE", "1"))
        on_gpu = uses_gpu(config)
        self.precision = choose_precision(config.precision, on_gpu)
        threads = thread_count(config.threads, world)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or Accelerate sets 1, and warns
        slow = FIRST if config.parallel.compile else 1
        hang = timedelta(seconds=slow * config.parallel.hang_timeout) + AFTER_WATCH
        backend = "nccl" if on_gpu else "gloo"
        _say_who_is_waited_for(os.environ)
        self.accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(backend=backend, timeout=max(RENDEZVOUS, hang)),
            ],
        )
        torch.set_num_threads(threads)
        if dist.is_initialized():  # torch has one time-out for both, and no public way to change it
            dist.distributed_c10d._set_pg_timeout(hang)
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.config = config.parallel
        if self.world_size != world:
            raise ConfigError(
                f"WORLD_SIZE={world} processes were started but {self.world_size} found each "
                f"other, and would train {world} separate runs: start them by torchrun, or let "
                f"`train processes={world}` do it"
            )
        self.stage = STAGES.get(self.config.strategy, 0)
        self.clip = config.clip
        if self.stage and not dist.is_initialized():  # one process
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.control_group = (
            dist.new_group(backend="gloo", timeout=hang) if world > 1 and on_gpu else None
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def train(
        self,
        name: str,
        module: nn.Module,
        optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        average: bool = False,
    ) -> TrainableNetwork:
        """Put a network on the device and synchronise its norms; `start` wraps it."""
        module = module.to(self.device)
        if self.config.sync_batchnorm and (self.world_size > 1 or self.device.type == "cpu"):
            module = synchronised(module, self.device.type)
        if self.config.channels_last and not self.stage:  # ZeRO flattens weights its own way
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = copy.deepcopy(module).requires_grad_(False).eval() if average else None
        whole = copy.deepcopy(module).eval() if self.stage == 3 and ema is None else None
        scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        made = optimizer([p for p in module.parameters() if p.requires_grad])
        size = sum(p.numel() for p in module.parameters())
        return TrainableNetwork(name, module, module, made, ema, scaler, whole=whole, size=size)

    def start(self, players: Sequence[TrainableNetwork]) -> None:
        """Wrap for the strategy; what was restored into networks and optimisers is taken over."""
        for player in players:
            if self.config.compile:
                player.module.compile()
            # ZeRO gets the autocast that DDP's forward has, and nothing else of Accelerate's.
            wrapped = self.accelerator.prepare_model(player.module, evaluation_mode=self.stage > 0)
            if self.stage:
                sharded = Sharded(player.module, player.optimizer, self.stage, self.clip)
                player.sharded, wrapped = sharded, sharded.engine
            player.wrapped = wrapped

    def autocast(self) -> Any:
        """The context of forward passes and losses."""
        return self.accelerator.autocast()

    def begin(self, players: Sequence[TrainableNetwork]) -> None:
        """Before the forward passes of a step, which `step` ends."""
        for player in players:
            player.snapshot_buffers()

    @contextmanager
    def micro_batch(self, players: Sequence[TrainableNetwork], last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch: gradients are exchanged at the last only."""
        with ExitStack() as stack:
            for player in players:
                if player.sharded is not None:
                    player.sharded.engine.set_gradient_accumulation_boundary(last)
                elif not last:
                    stack.enter_context(self.accelerator.no_sync(player.wrapped))
            yield

    @contextmanager
    def alone(self, players: Sequence[TrainableNetwork]) -> Iterator[None]:
        """Forward and backward that exchange nothing with other ranks, to see what fits.

        Not with ZeRO. Norms are in evaluation mode, and gradients are dropped.
        """
        wrapped = [player.wrapped for player in players]
        for player in players:
            player.module.eval().zero_grad(set_to_none=True)
            player.wrapped = player.module
        try:
            yield
        finally:
            for player, before in zip(players, wrapped, strict=True):
                player.wrapped = before
                player.module.train().zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, player: TrainableNetwork) -> None:
        if player.sharded is not None:
            player.sharded.backward(loss)
        else:
            (loss if player.scaler is None else player.scaler.scale(loss)).backward()

    def step(self, players: Sequence[TrainableNetwork], decay: float) -> bool:
        """Step every optimiser, or none where a gradient is not finite; True where they stepped.

        With DDP the norm is the same number on every rank after the exchange, so that ranks agree;
        with ZeRO each has a share of the gradient, and they vote.
        """
        if self.stage:
            return self._step_sharded(players, decay)
        norms = []
        for player in players:
            if player.scaler is not None:
                player.scaler.unscale_(player.optimizer)
            grads = [p.grad for p in player.module.parameters() if p.grad is not None]
            norms.append(nn.utils.get_total_norm(grads))
        finite = bool(torch.isfinite(torch.stack(norms)).all())
        for player, norm in zip(players, norms, strict=True):
            if finite:
                if self.clip is not None:
                    parameters = list(player.module.parameters())
                    nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
                player.optimizer.step()
                player.average(decay)
            else:
                player.restore_buffers()
            if player.scaler is not None:
                player.scaler.update()
            player.optimizer.zero_grad(set_to_none=True)
        return finite

    def lowers_scale(self, players: Sequence[TrainableNetwork]) -> bool:
        """True where a skipped step only asks for a lower loss scale: fp16, every scale above 1."""
        return all(t.scaler is not None and t.scaler.get_scale() >= 1 for t in players)

    def _step_sharded(self, players: Sequence[TrainableNetwork], decay: float) -> bool:
        shares = [t.sharded for t in players if t.sharded is not None]
        finite = not self.any(not torch.isfinite(torch.stack([s.norm() for s in shares])).all())
        for player, share in zip(players, shares, strict=True):
            share.step(finite)
            player.average(decay) if finite else player.restore_buffers()
        return finite

    def means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Mean over ranks of scalars that every rank has, in one exchange."""
        stacked = torch.stack([v.detach().float() for v in values.values()])
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return dict(zip(values, stacked.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """True on every rank where it is true on one: the vote at each step's end."""
        if self.world_size == 1:
            return flag
        vote = torch.tensor(float(flag))
        try:
            dist.all_reduce(vote, dist.ReduceOp.MAX, group=self.control_group)
        except RuntimeError as error:
            raise ConnectionError(f"another rank is gone: {error}") from None
        return bool(vote)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small picklable value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control_group)
        return found

    def broadcast_object(self, value: Any = None) -> Any:
        """Rank 0's picklable value on every rank, whatever the others give."""
        if self.world_size == 1:
            return value
        found = [value if self.is_main else None]
        dist.broadcast_object_list(found, src=0, group=self.control_group)
        return found[0]

    def average_buffers(self, players: Sequence[TrainableNetwork]) -> None:
        """Make running statistics equal on all ranks; synchronised norms have them so already."""
        if self.world_size == 1 or self.config.sync_batchnorm:
            return
        for network in (n for player in players for n in player.networks.values()):
            for buffer in filter(torch.is_floating_point, network.buffers()):
                dist.all_reduce(buffer)
                buffer /= self.world_size

    def close(self, error: BaseException | None = None) -> None:
        """Leave the group; networks must be let go of before, but for those that Accelerate keeps.

        DDP's reducer, destroyed after the group, holds the GIL while it waits for a thread of gloo
        that may want it. After an `error` others may stand in an exchange, for which leaving would
        wait: the process ends without. After `LEAVING` seconds it shows its stacks and ends with 1.
        """
        if not (failed := isinstance(error, Exception)):
            self.any(False)
        if self.world_size > 1:
            faulthandler.dump_traceback_later(LEAVING, exit=True)  # needs no GIL
        if failed:
            return
        self.accelerator.free_memory()
        gc.collect()  # DDP holds itself in cycles
        if dist.is_initialized():
            dist.destroy_process_group()
