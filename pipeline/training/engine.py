"""Processes, devices, precision, gradients: the only file that knows Accelerate.

Its callers only see networks and losses. All collectives of a step are listed here: gradients
(DDP, or ZeRO in `network.py`), BatchNorm statistics, one vote per step, mean losses when logged.
"""

from __future__ import annotations

import copy
import faulthandler
import gc
import os
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common.console import say
from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import choose_precision, interface, thread_count, uses_gpu
from pipeline.training import stepping
from pipeline.training.network import STAGES, Sharded, TrainableNetwork
from pipeline.training.sync_batchnorm import synchronize
from pipeline.training.watchdog import FIRST_TIME_FACTOR

warnings.filterwarnings("ignore", message=r".*broadcast_buffers.*", category=FutureWarning)

# Until every process has joined: container images are pulled and cold disks read meanwhile.
RENDEZVOUS = timedelta(seconds=1800)
AFTER_WATCHDOG = timedelta(seconds=120)  # collectives time out after the watchdog's report
# Variables that `accelerate config` and other launchers leave: only our configuration decides.
FOREIGN = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED")
EXIT_TIMEOUT = 60.0  # seconds from the end of training to the end of the process


def _prepare_rendezvous(place: MutableMapping[str, str]) -> None:
    """Choose gloo's network between nodes, and print that this node waits for the others.

    Up to half an hour without output may follow.
    """
    world, here = place.get("WORLD_SIZE", "1"), place.get("LOCAL_WORLD_SIZE")
    if here in (None, world):
        return
    if not place.get("GLOO_SOCKET_IFNAME") and (name := interface(place["MASTER_ADDR"])):
        place["GLOO_SOCKET_IFNAME"] = name
    if place.get("LOCAL_RANK") == "0":
        say(
            f"rank {place['RANK']}: waiting up to {RENDEZVOUS.seconds // 60} minutes for all "
            f"{world} processes at {place['MASTER_ADDR']}:{place['MASTER_PORT']}"
        )


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"lost connection to another rank: {error}") from None


def _counted(vote: Tensor, work: Any) -> float:
    with _lost():
        work.wait()
    return vote.item()


def load_accelerate() -> None:
    """Import Accelerate without the variables of `FOREIGN`, some of which it reads then."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    import accelerate.utils  # noqa: F401


class Engine:
    """One process of the run: its rank, device, precision, and exchanges with other ranks."""

    def __init__(self, config: TrainConfig) -> None:
        faulthandler.cancel_dump_traceback_later()  # set by an earlier engine of this process
        load_accelerate()
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        world = int(os.environ.get("WORLD_SIZE", "1"))
        on_gpu = uses_gpu(config)
        if on_gpu:
            stepping.choose_algorithms(config.parallel.deterministic)
        self.precision = choose_precision(config.precision, on_gpu)
        threads = thread_count(config.threads, world)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Accelerate fails if it is empty, warns at 0
        slow = FIRST_TIME_FACTOR if config.parallel.compile else 1
        hang = timedelta(seconds=slow * config.parallel.hang_timeout) + AFTER_WATCHDOG
        backend = "nccl" if on_gpu else "gloo"
        _prepare_rendezvous(os.environ)
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
        # One timeout serves rendezvous and collectives; torch has no public way to change it.
        if dist.is_initialized():
            dist.distributed_c10d._set_pg_timeout(hang)
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.on_device = self.device.type != "cpu"  # it works through a queue behind the host
        self.config = config.parallel
        if self.world_size != world:
            raise ConfigError(
                f"WORLD_SIZE={world}, but the process group has {self.world_size} processes, which "
                f"would train separate runs: start them with torchrun or `train processes={world}`"
            )
        self.stage = STAGES.get(self.config.strategy, 0)
        self.clip = config.clip
        self.norms: dict[str, Tensor] = {}  # of the last step's gradients, before clipping
        self._vote: tuple[Tensor, Any] | None = None
        if self.stage and not dist.is_initialized():  # one process
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.control_group = (
            dist.new_group(backend="gloo", timeout=hang) if world > 1 and on_gpu else None
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def prepare(
        self,
        name: str,
        module: nn.Module,
        optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        average: bool = False,
    ) -> TrainableNetwork:
        """Move a network to the device, synchronize its norms, make its optimizer and average.

        `start` wraps it for the strategy, once a checkpoint was restored into it.
        """
        module = module.to(self.device)
        if self.config.sync_batchnorm and (self.world_size > 1 or self.device.type == "cpu"):
            module = synchronize(module, self.device.type)
        if self.config.channels_last and not self.stage:  # ZeRO flattens weights itself
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = copy.deepcopy(module).requires_grad_(False).eval() if average else None
        whole = copy.deepcopy(module).eval() if self.stage == 3 and ema is None else None
        scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        made = optimizer([p for p in module.parameters() if p.requires_grad])
        size = sum(p.numel() for p in module.parameters())
        return TrainableNetwork(name, module, module, made, ema, scaler, whole=whole, size=size)

    def start(self, players: Sequence[TrainableNetwork]) -> None:
        """Wrap networks for the strategy, with the state that was restored into them."""
        for player in players:
            if self.config.compile:
                player.module.compile()
            # For ZeRO Accelerate only adds the autocast that DDP's forward has.
            wrapped = self.accelerator.prepare_model(player.module, evaluation_mode=self.stage > 0)
            if self.stage:
                sharded = Sharded(player.module, player.optimizer, self.stage, self.clip)
                player.sharded, wrapped = sharded, sharded.engine
            player.wrapped = wrapped

    def autocast(self) -> Any:
        """Return the context of forward passes and losses: mixed precision."""
        return self.accelerator.autocast()

    def begin(self, players: Sequence[TrainableNetwork]) -> None:
        """Start a step: snapshot the buffers that `step` restores if it is skipped."""
        for player in players:
            player.snapshot_buffers()

    @contextmanager
    def micro_batch(self, players: Sequence[TrainableNetwork], last: bool) -> Iterator[None]:
        """Return the context of one micro-batch: gradients are all-reduced in the last one only."""
        with ExitStack() as stack:
            for player in players:
                if player.sharded is not None:
                    player.sharded.engine.set_gradient_accumulation_boundary(last)
                elif not last:
                    stack.enter_context(self.accelerator.no_sync(player.wrapped))
            yield

    def backward(self, loss: Tensor, player: TrainableNetwork) -> None:
        if player.sharded is not None:
            player.sharded.engine.backward(loss, scale_wrt_gas=False)
        else:
            (loss if player.scaler is None else player.scaler.scale(loss)).backward()

    def step(self, players: Sequence[TrainableNetwork], decay: float) -> Tensor:
        """Step all optimizers, or none if a gradient is not finite; whether they did, scalar bool.

        With DDP every rank has the same gradient norm after the all-reduce, so ranks agree; with
        ZeRO each rank has a part of the gradient, and they vote.
        """
        if self.stage:
            return self._step_sharded(players, decay)
        stepped, norms = stepping.step(players, decay, self.clip, self.on_device)
        self._keep_norms(players, norms)
        return stepped

    def _keep_norms(self, players: Sequence[TrainableNetwork], norms: Sequence[Tensor]) -> None:
        names = (p.name[0] + p.name.removeprefix(p.file[0]) for p in players)  # g, g.edges, …
        self.norms = {f"{name}/grad_norm": norm for name, norm in zip(names, norms)}

    def _step_sharded(self, players: Sequence[TrainableNetwork], decay: float) -> Tensor:
        shares = [t.sharded for t in players if t.sharded is not None]
        finite = not self.any(not torch.isfinite(torch.stack([s.norm() for s in shares])).all())
        for player, share in zip(players, shares, strict=True):
            share.step(finite)
            player.average(decay) if finite else player.restore_buffers()
        self._keep_norms(players, [share.total_norm() for share in shares])
        return torch.tensor(finite, device=self.device)

    def means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over ranks, in one all-reduce."""
        stacked = torch.stack([v.detach().float() for v in values.values()])
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return dict(zip(values, stacked.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return on every rank whether `flag` is true on any."""
        return flag if self.world_size == 1 else _counted(*self._cast(float(flag))) > 0

    def vote(self, value: float) -> float:
        """Return on every rank the largest value of any at the last call; alone, of this call.

        A step late, so that no rank waits for the others at a step's end.
        """
        if self.world_size == 1:
            return value
        before, self._vote = self._vote, self._cast(value)
        return 0.0 if before is None else _counted(*before)

    def _cast(self, value: float) -> tuple[Tensor, Any]:
        vote, most = torch.tensor(value), dist.ReduceOp.MAX
        with _lost():
            return vote, dist.all_reduce(vote, most, self.control_group, async_op=True)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's (small, picklable) value in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control_group)
        return values

    def broadcast_object(self, value: Any = None) -> Any:
        """Return rank 0's picklable value on every rank; other ranks' values are ignored."""
        if self.world_size == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0, group=self.control_group)
        return values[0]

    def from_main(self, read: Callable[[], Any]) -> Any:
        """Return on every rank what `read` returns on rank 0; its error is raised on every rank."""
        value = None
        if self.is_main:
            try:
                value = read()
            except (ValueError, OSError) as error:
                value = error
        value = self.broadcast_object(value)
        if isinstance(value, Exception):
            raise value
        return value

    def average_buffers(self, players: Sequence[TrainableNetwork]) -> None:
        """Average running statistics over ranks; synchronized norms are equal already."""
        if self.world_size == 1 or self.config.sync_batchnorm:
            return
        for network in (n for player in players for n in player.networks.values()):
            for buffer in filter(torch.is_floating_point, network.buffers()):
                dist.all_reduce(buffer)
                buffer /= self.world_size

    def close(self, error: BaseException | None = None) -> None:
        """Destroy the process group; callers must have dropped their references to networks.

        A DDP reducer destroyed after the group would hold the GIL while it waits for a gloo thread
        that needs the GIL. After an `error` the group is not destroyed, because other ranks may be
        in a collective. After `EXIT_TIMEOUT` seconds the process prints its stacks and exits.
        """
        if not (failed := isinstance(error, Exception)):
            self.any(False)
        if self.world_size > 1:
            faulthandler.dump_traceback_later(EXIT_TIMEOUT, exit=True)  # works without the GIL
        if failed:
            return
        self.accelerator.free_memory()
        gc.collect()  # DDP is in reference cycles
        if dist.is_initialized():
            dist.destroy_process_group()
