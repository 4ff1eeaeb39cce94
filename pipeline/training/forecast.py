"""What a training run will cost, for `train --dry-run`: arithmetic, hours, and what it reads."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.common.environment import count
from pipeline.config.schema import TrainConfig
from pipeline.training import flops
from shards.manifest import open_manifest
from shards.order import amplification, lanes_for
from shards.stream import order_of

FRACTION = 0.3  # of the peak; an assumption, which `smoke=true` replaces by a measurement
DEVICES = ("A100", "H100 SXM, H200", "L40S", "RTX 4090")


def forecast(config: TrainConfig, world_size: int, left: int) -> list[str]:
    """Return lines about the remaining `left` images on `world_size` processes."""
    manifest = open_manifest(str(config.data.url))
    split = manifest.splits[config.data.train]
    each = flops.estimate(config)
    lines = [
        f"{left:,} images = {-(-left // config.batch):,} steps of batch={config.batch} = "
        f"{left / split.samples:.1f} epochs of {split.samples:,} images",
        f"{each / 1e9:,.0f} GFLOP per image at {config.data.crop}x{config.data.crop}, "
        f"{each * left:.2g} FLOP in all",
    ]
    lines.append(
        f"hours on {world_size} device{'s' * (world_size > 1)} at an assumed {FRACTION:.0%} of "
        f"the bf16 peak (smoke=true measures yours): {_hours(each * left / world_size)}"
    )
    lanes = count("data.lanes", config.data.lanes) or lanes_for(world_size)
    times = amplification(lanes, world_size)
    size = times * sum(shard.bytes for shard in split.shards) / 1e9
    order = order_of(manifest, config.data.train, config.seed, lanes)
    blocks = times * int(order.blocks.sum())
    lines.append(f"each epoch reads {size:,.2f} GB; from a bucket in {blocks:,} GETs")
    return lines


def gpu_hours(configs: Iterable[TrainConfig]) -> list[str]:
    """Return lines with the GPU-hours of each recipe of a sweep, all its runs, and their sum."""
    costs: dict[str, float] = {}
    totals: dict[str, float] = {}
    for config in configs:
        same = str((config.model, config.objective, config.data.crop))  # as of other seeds
        if same not in costs:
            costs[same] = flops.estimate(config)
        name = config.experiment or "train"
        totals[name] = totals.get(name, 0.0) + costs[same] * config.max_images
    totals["in sum"] = sum(totals.values())
    return [
        f"GPU-hours at an assumed {FRACTION:.0%} of the bf16 peak (smoke=true measures yours)",
        *(f"{name}: {_hours(total)}" for name, total in totals.items()),
    ]


def _hours(flop: float) -> str:
    """Return how long each device would take."""
    hours = []
    for name in DEVICES:
        rate = flops.peak(name, "bf16")
        assert rate is not None
        hours.append(f"{name}: {flop / rate / FRACTION / 3600:,.1f}")
    return "; ".join(hours)
