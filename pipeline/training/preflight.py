"""What is refused before any worker starts: each in one line, for what would end every one of them.

Nothing here imports torch, so that a launcher stays cheap. What a network takes (multiples of
`data.crop` and `validate.size`) is known where the networks are, and told by the workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec

from pipeline.common.errors import ConfigError
from pipeline.config import checks
from pipeline.config.groups import VALIDATED, DataConfig, MasksConfig
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import surely_no_gpu
from pipeline.runs import checkpoints
from pipeline.runs.checkpoints import images_saved
from pipeline.runs.folder import RunFolder, held
from pipeline.runs.identity import check_same, folder_of, other_dataset
from pipeline.runs.run_json import read_run_json
from pipeline.training import pretrained
from shards import store
from shards.manifest import Manifest, open_manifest, read_index
from shards.masks import FIXED, MaskPolicy

# Options of a model that change what it computes and none of its tensors.
COMPUTED = ("gate", "taps", "temperature", "propagation")


def preflight(
    config: TrainConfig, world_size: int, first: bool = True, locks: bool = True
) -> RunFolder:
    """Refuse here, in one line and before any worker starts, what would end every one of them.

    `first`: on the first node, whose rank 0 reads pretrained weights and holds the run; the others
    may come while it does already. `locks`: try to hold it.
    """
    check_processes(config, world_size)
    manifest = open_manifest(str(config.data.url))
    check_splits(config.data, manifest)
    check_sizes(config, manifest)
    check_masks(config.masks, config.validate.size)
    if first:
        pretrained.check(config)
    run = folder_of(config)
    check_same(config, run)
    trained_on = read_run_json(run.url).get("dataset", manifest.digest)
    if trained_on != manifest.digest:
        raise ConfigError(other_dataset(run.url, trained_on, manifest))
    if config.init is not None and not images_saved(run.url):  # a resume takes its own weights
        check_init(config, config.init)
    if first and locks:
        with held(run):
            return run  # rank 0 holds it from now on
    return run


def check_processes(config: TrainConfig, world_size: int) -> None:
    """Refuse processes, threads and precision that cannot be on these machines."""
    strategy = config.parallel.strategy
    if strategy == "single" and world_size > 1:
        raise ConfigError(
            f"parallel=single is one process, and this job has {world_size}: give parallel=ddp, or "
            f"one node with one process"
        )
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        raise ConfigError(
            f"parallel={strategy} needs DeepSpeed, which is not installed: "
            f"DS_BUILD_OPS=0 pip install -e .[deepspeed], or parallel=ddp"
        )
    here = "PET_NNODES" in os.environ or config.cluster.scheduler == "local"  # not: submitted
    if config.precision == "fp16" and here and surely_no_gpu():
        raise ConfigError("precision=fp16 needs a GPU; on this CPU use fp32, bf16 or auto")
    checks.divisible(config, world_size)


# --- the dataset ---------------------------------------------------------------------------------


def check_splits(data: DataConfig, manifest: Manifest) -> None:
    """Refuse splits that are not there, and to select checkpoints on what results are taken on."""
    for key, split in (("train", data.train), ("validate", data.validate)):
        if not manifest.splits.get(split):
            there = ", ".join(sorted(manifest.splits))
            mend = ""
            if key == "validate":
                mend = (
                    ": `shard data.holdout=0.01` with a new out= holds pictures of "
                    "train out for it; test is for results alone"
                )
            raise ConfigError(
                f"data.{key}={split} is no split of {store.display(manifest.url)} (it has "
                f"{there}){mend}"
            )


def check_sizes(config: TrainConfig, manifest: Manifest) -> None:
    """Refuse squares that the pictures do not hold, by the index.

    Of training's, that of the first shard; of the validated pictures, that of each.
    """
    data, size = config.data, config.validate.size
    if data.crop_mode != "resized":
        sides = _sides(manifest, data.train, manifest.splits[data.train].shards[0].samples)
        _check_side("data.crop", data.crop, data, manifest, data.train, sides)
    sides = _sides(manifest, data.validate, config.validate.pairs)
    _check_side("validate.size", size, data, manifest, data.validate, sides)


def _sides(manifest: Manifest, split: str, pictures: int) -> Iterator[int]:
    """Shorter sides of the first `pictures` of a split in key order; reads no more indexes."""
    for shard in manifest.splits[split].shards:
        index = read_index(manifest, split, shard).slice(0, pictures)
        yield from map(min, index["width"].to_pylist(), index["height"].to_pylist())
        pictures -= len(index)
        if pictures <= 0:
            return


def _check_side(
    key: str, side: int, data: DataConfig, manifest: Manifest, split: str, sides: Iterator[int]
) -> None:
    if (data.resize_short or 0) >= side:
        return
    if data.resize_short is not None:
        raise ConfigError(
            f"{key}={side} is larger than data.resize_short={data.resize_short}: "
            f"resize to at least that"
        )
    smallest = min(sides, default=side)
    if smallest < side:
        raise ConfigError(
            f"{key}={side} is larger than pictures of {store.display(manifest.url)}: the smallest "
            f"side looked at in {split} is {smallest}; lower it, or set data.resize_short="
        )


# --- holes ---------------------------------------------------------------------------------------


def check_masks(masks: MasksConfig, size: int) -> None:
    """Refuse holes that cannot be drawn, and a mask set that training or validation cannot use."""
    MaskPolicy(masks.kind, masks.low, masks.high, masks.border, masks.url)  # type: ignore[arg-type]
    if masks.url is not None:
        _check_mask_set(masks, open_manifest(masks.url), size)


def _check_mask_set(masks: MasksConfig, found: Manifest, size: int) -> None:
    where = f"masks.url={store.display(found.url)}"
    if found.kind != "masks":
        raise ConfigError(f"{where} holds {found.kind}, no masks: give what `masks out=` wrote")
    rows = [
        row
        for split in sorted(found.splits)
        for shard in found.splits[split].shards
        for row in read_index(found, split, shard)
        .select(["width", "height", "bucket", "ratio"])
        .to_pylist()
    ]
    fitting = (masks.low < r["ratio"] <= masks.high and r["bucket"] != FIXED for r in rows)
    if not any(fitting):
        raise ConfigError(
            f"{where} has no irregular mask of a ratio in ({masks.low}, {masks.high}]: widen "
            f"masks.low= and masks.high=, or make masks of that size of hole"
        )
    validated = {(r["width"], r["height"]) for r in rows if r["bucket"] == VALIDATED}
    if not validated:
        raise ConfigError(
            f"{where} has no masks in {VALIDATED}, which validation takes: make or import them"
        )
    if validated != {(size, size)}:
        width, height = min(validated - {(size, size)})
        raise ConfigError(
            f"{where} has masks of {width}x{height}, and validate.size is {size}: set "
            f"validate.size={width}, or make masks with size={size}"
        )


# --- weights to start from -----------------------------------------------------------------------


def check_init(config: TrainConfig, init: str) -> None:
    """Refuse weights that are not there, or by what is told of them another architecture's."""
    shown, model = store.display(init), asdict(config.model)
    if init.startswith("models:"):
        told = _registered(init, config)
    else:
        url, name = checkpoints.split_address(init)
        found = {c.name: c for c in checkpoints.list_checkpoints(url)}
        if not found:
            raise ConfigError(
                f"init={shown} holds no checkpoint: give a run, one of its checkpoints, or "
                f"models:/NAME@champion"
            )
        if name and name not in found:
            raise ConfigError(f"init={shown} does not exist: that run has {', '.join(found)}")
        told = found[name or max(found)].state.get("model", {})
    for key, value in model.items():
        before = told.get(key, value)
        if before != value and key not in COMPUTED:
            raise ConfigError(
                f"init={shown} holds weights of model.{key}={before}, which do not fit "
                f"model.{key}={value}: give model.{key}={before}"
            )


def _registered(init: str, config: TrainConfig) -> dict[str, str]:
    """What the registry tells of a version's architecture: the network's name."""
    from pipeline.tracking import errors
    from pipeline.tracking.client import connect, tracking_uri
    from pipeline.tracking.model_versions import find_version

    where = tracking_uri(config.root, config.cluster.env.get("MLFLOW_TRACKING_URI"))
    try:
        client = connect(where, make=False)
    except errors.ServerError as error:
        raise ConfigError(f"init={init}: {error}") from None
    try:
        with errors.explained(where):
            version = find_version(client, init)
    except errors.ServerError as error:  # who submits need not reach it
        raise ConnectionError(f"init={init}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"init={init}: {error}") from None
    network = version.tags.get("lacuna.network")
    return {"name": network} if network else {}
