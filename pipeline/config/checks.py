"""Checks of a command's configuration that need neither torch nor the data that it names.

One function per command, called before the command runs, and by `submit` before a job of it is
queued. Checks that open data sets or runs belong to the commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.common.environment import count
from pipeline.common.errors import ConfigError
from pipeline.config.groups import MasksConfig, check_phases
from pipeline.config.schema import EvaluateConfig, MakeMasksConfig, ShardConfig, TrainConfig
from shards import store


def train(config: TrainConfig) -> None:
    """Check the learning rates, processes, precision, data and masks of a training run."""
    check_phases(config.objective.phases)
    if len(config.objective.betas) != 2:
        raise ConfigError(
            f"objective.betas={config.objective.betas}: expected two numbers, b1 and b2"
        )
    count("processes", config.processes)
    count("threads", config.threads)
    strategy = config.parallel.strategy
    if strategy.startswith("zero") and config.precision == "fp16":
        raise ConfigError(
            f"precision=fp16 is for parallel=ddp and single; parallel={strategy} takes bf16 or fp32"
        )
    if config.data.url is None:
        missing = "data.url= is missing: the sharded set to train on (`shard` makes one)"
        if config.run and not store.exists(store.join(config.run, "config.yaml")):
            missing += f"; {store.display(config.run)} holds no config.yaml to resume from"
        raise ConfigError(missing)
    if config.data.validate == "test":
        raise ConfigError(
            "data.validate=test: the best checkpoint would be selected on the images that results "
            "are taken on; give val, which `shard data.holdout=0.01` makes from train where the "
            "publisher has none"
        )
    _masks(config.masks)


def _masks(masks: MasksConfig) -> None:
    if masks.kind == "none":
        raise ConfigError(
            "masks.kind=none leaves no hole to train on: give irregular, center, square or external"
        )
    if masks.low >= masks.high:
        raise ConfigError(
            f"masks.low={masks.low} is not below masks.high={masks.high}: give two hole ratios, "
            "low < high"
        )
    if masks.kind == "external" and masks.url is None:
        raise ConfigError(
            "masks.kind=external needs masks.url=, a set of masks (`masks out=DIR` makes one)"
        )
    if masks.kind != "external" and masks.url is not None:
        raise ConfigError(
            f"masks.url={store.display(masks.url)} needs masks.kind=external, but masks.kind is "
            f"{masks.kind}: give masks.kind=external, or leave masks.url= out"
        )


def evaluate(config: EvaluateConfig) -> None:
    """Check that one thing is to be scored, on a given set."""
    names = [n for n in ("checkpoint", "model", "predictions") if getattr(config, n) is not None]
    if len(names) > 1 or not names and config.export is None:
        given = f"{' and '.join(f'{n}=' for n in names)} are given" if names else "nothing to score"
        raise ConfigError(f"{given}: give one of checkpoint=, model=, predictions=")
    if config.data.url is None:
        raise ConfigError("data.url= is missing: the sharded set that holds the images")
    if config.features is not None and config.checkpoint is None:
        raise ConfigError("features= needs the layers of a generator: give checkpoint=")
    count("processes", config.processes)


def shard(config: ShardConfig) -> None:
    """Check that a set to write, or one to look at, is named."""
    if config.action != "write" and config.url is None and config.out is None:
        raise ConfigError(f"shard {config.action} needs the URL of a sharded set")
    if config.action == "write" and config.source is not None and config.out is None:
        raise ConfigError(
            "shard: out= is missing: give a new or empty folder or s3:// URL, or this set's"
        )
    if config.data.layout != "wds":
        local_source(config)


def local_source(config: ShardConfig | MakeMasksConfig) -> None:
    """Check that the files to read are on a disk; data=wds, which is indexed in place, may not."""
    if config.source and not store.is_local(config.source):
        raise ConfigError(
            f"source={store.display(config.source)}: published files are read from a local disk "
            "only: copy them there first (WebDataset tars, data=wds, are read from any URL)"
        )


def divisible(config: TrainConfig, world_size: int, processes: str = "") -> None:
    """Check that each process gets equally many images of every micro-batch.

    processes: how the message names them, where they are not simply `world_size`.
    """
    total = world_size * config.accumulate
    if config.batch % total:
        raise ConfigError(
            f"batch={config.batch} is not divisible by {processes or world_size} processes x "
            f"accumulate={config.accumulate}: choose a multiple of {total}"
        )


CHECKS: dict[str, Callable[[Any], None]] = {
    "train": train,
    "evaluate": evaluate,
    "shard": shard,
    "masks": local_source,
}


def check(command: str, config: Any) -> None:
    """Raise ConfigError for what is wrong in a command's resolved configuration."""
    if command in CHECKS:
        CHECKS[command](config)
