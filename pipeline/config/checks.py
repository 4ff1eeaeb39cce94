"""Checks of a command's configuration that need neither torch nor the data that it names.

One function per command, in its row of `commands.COMMANDS`: called before the command runs, and by
`submit` before a job of it is queued. Checks that open data sets or runs belong to the commands.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from os.path import isdir
from typing import Any

from pipeline.common.environment import count
from pipeline.common.errors import ConfigError
from pipeline.common.inputs import protect
from pipeline.config import groups, schema
from pipeline.config.phases import check_phases
from pipeline.config.values import (
    checked_model,
    checked_name,
    checkpoints_to_keep,
    rectangle,
    task,
)
from shards import store
from shards.formats import IMAGES, SUFFIXES, suffix


def nothing(config: Any) -> None:
    """Accept any configuration of the schema."""


def train(config: schema.TrainConfig) -> None:
    """Check the network, learning rates, processes, precision, data and masks of a training run."""
    objective = config.objective
    if objective.generators and config.model.name not in objective.generators:
        raise ConfigError(
            f"model={config.model.name} does not fit objective.method={objective.method}: give "
            f"model={' or '.join(objective.generators)}"
        )
    if objective.compares_features() and not config.model.features:
        raise ConfigError(
            f"objective.features=internal compares features of the generator, and model="
            f"{config.model.name} has none: give objective.features=vgg16, or "
            f"objective.perceptual=0 objective.style=0"
        )
    check_phases(objective.phases, objective.players, objective.weights())
    if len(objective.betas) != 2:
        raise ConfigError(f"objective.betas={objective.betas}: expected two numbers, b1 and b2")
    count("processes", config.processes)
    count("threads", config.threads)
    count("data.lanes", config.data.lanes)
    strategy = config.parallel.strategy
    sharded = strategy.startswith("zero")
    if objective.penalized() and (sharded or config.parallel.compile):
        given = f"parallel={strategy}" if sharded else "parallel.compile=true"
        raise ConfigError(
            f"{given} cannot differentiate the gradient penalty of objective.method="
            f"{objective.method}: give parallel=ddp and parallel.compile=false, or "
            f"objective.penalty=0"
        )
    if sharded and config.precision == "fp16":
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
    _sides(config)
    checked_model(config.init)
    _masks(config.masks, config.data.crop, config.validate.size)


def _sides(config: schema.TrainConfig) -> None:
    """Check that images of the sides that are trained on and validated fit the networks."""
    data, model = config.data, (config.model.sides(), f"model={config.model.name}")
    checked = [("data.crop", data.crop, *model), ("validate.size", config.validate.size, *model)]
    if judged := config.objective.discriminator_sides():
        name = f"the discriminator of objective.method={config.objective.method}"
        checked.append(("data.crop", data.crop, judged, name))
    for key, side, sides, network in checked:
        multiple, smallest = sides
        if side % multiple or side < smallest:
            raise ConfigError(
                f"{key}={side} does not fit {network}: give a multiple of {multiple}, at least "
                f"{smallest}"
            )
    if config.data.crop_mode != "resized":
        _resized("data.crop", data.crop, data)
    _resized("validate.size", config.validate.size, data)


def _resized(key: str, side: int, data: groups.ResizedData) -> None:
    if data.resize_short is not None and data.resize_short < side:
        raise ConfigError(
            f"{key}={side} is larger than data.resize_short={data.resize_short}: set "
            f"data.resize_short to at least {side}"
        )


def _masks(masks: groups.MasksConfig, crop: int, validated: int) -> None:
    if masks.kind == "none":
        raise ConfigError(
            "masks.kind=none leaves no hole to train on: give irregular, center, square or external"
        )
    from shards.masks import MaskPolicy  # imports OpenCV

    MaskPolicy(**asdict(masks))
    if sorted(masks.sides) != masks.sides or max(masks.sides, default=0) > min(crop, validated):
        raise ConfigError(
            f"masks.sides={masks.sides}: expected increasing sides of at most data.crop={crop} and "
            f"validate.size={validated}"
        )


def evaluate(config: schema.EvaluateConfig) -> None:
    """Check that one thing is to be scored, on a given set, and that nothing is overwritten."""
    kinds = ("checkpoint", "model", "predictions", "verify")
    names = [name for name in kinds if getattr(config, name) is not None]
    if len(names) > 1 or not names and config.export is None:
        given = f"{' and '.join(f'{n}=' for n in names)} are given" if names else "nothing to score"
        raise ConfigError(f"{given}: give one of checkpoint=, model=, predictions=, verify=")
    if config.verify is not None:
        return  # all else is in the file
    if config.data.url is None:
        raise ConfigError("data.url= is missing: the sharded set that holds the images")
    if config.features is not None and config.checkpoint is None:
        raise ConfigError("features= needs the layers of a generator: give checkpoint=")
    count("processes", config.processes)
    protocol = config.protocol
    if groups.from_set(protocol.buckets) and config.masks.url is None:
        raise ConfigError(
            "masks.url= is missing: this protocol needs a set of masks (`masks out=DIR` writes one)"
        )
    if protocol.size < groups.SSIM_WINDOWS[protocol.ssim]:
        raise ConfigError(
            f"protocol.size={protocol.size} is smaller than the window of protocol.ssim="
            f"{protocol.ssim}: at least {groups.SSIM_WINDOWS[protocol.ssim]}"
        )
    _resized("protocol.size", protocol.size, config.data)
    checked_model(config.model)
    inputs = {name: [getattr(config, name)] for name in ("checkpoint", "model", "predictions")}
    inputs |= {"data.url": [config.data.url], "masks.url": [config.masks.url]}
    protect(inputs, {name: [getattr(config, name)] for name in ("export", "features", "out")})
    if (out := config.out) is not None and not out.endswith(".parquet"):
        raise ConfigError(f"out={out}: results are a table; give a file that ends in .parquet")


def shard(config: schema.ShardConfig) -> None:
    """Check the set to write, or to look at; existing tars are indexed by one process."""
    from shards.sources import source
    from shards.upkeep import parse_age

    if config.action == "gc":
        parse_age(config.older_than)
    if config.action != "write":
        if config.url is None and config.out is None:
            raise ConfigError(f"shard {config.action} needs the URL of a sharded set")
        return
    source(config.data.layout)
    parts = task(config.task)[1]
    if config.source is not None and config.out is None:
        raise ConfigError(
            "shard: out= is missing: give a new or empty folder or s3:// URL, or this set's"
        )
    if config.data.layout != "wds":
        _local_source(config)
    elif parts > 1 or config.workers > 1:
        raise ConfigError(
            f"data=wds with task={config.task} workers={config.workers}: existing tars are indexed "
            "by one process; remove task= (or cluster.tasks=) and workers="
        )
    protect({"source": [config.source]}, {"out": [config.out]}, below=True)


def masks(config: schema.MakeMasksConfig) -> None:
    """Check that masks are drawn or imported; those to import are on a disk, not overwritten."""
    if config.kind != "irregular":
        from shards.field_masks import KINDS  # imports OpenCV

        sizes = [size for kind, size in KINDS if kind == config.kind]
        if config.size not in sizes:
            raise ConfigError(f"kind={config.kind} has no size={config.size}: give {sizes}")
        if config.source is not None:
            raise ConfigError("kind= is of drawn masks, source= imports them: give one of both")
    _local_source(config)
    protect({"source": [config.source]}, {"out": [config.out]}, below=True)


def _local_source(config: schema.ShardConfig | schema.MakeMasksConfig) -> None:
    """Check that the files to read are on a disk; data=wds, which is indexed in place, may not."""
    if config.source and not store.is_local(config.source):
        raise ConfigError(
            f"source={store.display(config.source)}: published files are read from a local disk "
            "only: copy them there first (WebDataset tars, data=wds, are read from any URL)"
        )


def workers(config: schema.TrainConfig, world_size: int, processes: str = "") -> None:
    """Check the processes against the strategy and the batch, of which each gets equal shares.

    A batch norm needs two values.

    processes: how the message names them, where they are not simply `world_size`.
    """
    if config.parallel.strategy == "single" and world_size > 1:
        raise ConfigError(
            f"parallel=single is one process, but {processes or world_size} are given: give "
            "parallel=ddp, or processes=1 on one node"
        )
    total = world_size * config.accumulate
    if config.batch % total:
        raise ConfigError(
            f"batch={config.batch} is not divisible by {processes or world_size} processes x "
            f"accumulate={config.accumulate}: choose a multiple of {total}"
        )
    averaged = config.batch // (config.accumulate if config.parallel.sync_batchnorm else total)
    for network in (config.model, config.objective):
        if averaged * network.normalized(config.data.crop) < 2:
            raise ConfigError(
                f"batch={config.batch} data.crop={config.data.crop}: a batch norm of "
                f"{type(network).__name__} would average a single value; give "
                f"parallel.sync_batchnorm=true, a larger batch=, or a larger data.crop="
            )


def quickstart(config: schema.QuickstartConfig) -> None:
    if "://" in config.out:
        raise ConfigError(f"invalid out={config.out!r}: expected a folder of this machine")


def fetch(config: schema.FetchConfig) -> None:
    """Check that an own hash is one, and of one file."""
    if config.sha256 and len(config.names) != 1:
        raise ConfigError("sha256= is for one file: give one name of " + ", ".join(schema.WEIGHTS))
    if config.sha256 and not re.fullmatch("(?i)[0-9a-f]{8,64}", config.sha256):
        raise ConfigError(
            f"invalid sha256={config.sha256}: give its first 8 to 64 hexadecimal digits"
        )


def runs(config: schema.RunsConfig) -> None:
    """Check the age and the checkpoints to keep."""
    if config.older_than is not None:
        from shards.upkeep import parse_age

        parse_age(config.older_than)
    checkpoints_to_keep(config.keep)


def register(config: schema.RegisterConfig) -> None:
    if config.name is not None:
        checked_name(config.name)


def promote(config: schema.PromoteConfig) -> None:
    """Check the names of registered models, NAME/VERSION for the promoted one."""
    name, slash, number = config.model.partition("/")
    checked_name(name)
    if slash:
        checked_model(f"models:/{config.model}")
    if config.into is not None:
        checked_name(config.into)


def rollback(config: schema.RollbackConfig) -> None:
    checked_name(config.model)


def predict(config: schema.PredictConfig) -> None:
    """Check the model's name, the rectangle, the form of the result and the tiles."""
    from PIL import Image

    checked_model(config.model)
    rectangle(config.mask.file)
    written = suffix(config.out)
    unknown = suffix(config.image) in IMAGES and written[1:].isalpha() and not isdir(config.out)
    if written not in SUFFIXES and (unknown or written in Image.registered_extensions()):
        raise ConfigError(
            f"out={store.display(config.out)}: results are not written as {written}; "
            f"use one of {', '.join(SUFFIXES)}, or a folder"
        )
    if not 0 < 2 * config.overlap < config.tile:
        raise ConfigError(
            f"overlap={config.overlap} with tile={config.tile}: expected 0 < overlap < tile / 2"
        )


def export(config: schema.ExportConfig) -> None:
    checked_model(config.model)
    if suffix(config.out) != ".onnx":
        raise ConfigError(f"out={store.display(config.out)}: give a name that ends in .onnx")


def demo(config: schema.DemoConfig) -> None:
    checked_model(config.model)
    checked_model(config.against)
