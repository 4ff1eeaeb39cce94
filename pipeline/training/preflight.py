"""Checks before any worker starts: every error that would end all of them, in one line.

Nothing here imports torch, which keeps the launcher light.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config import checks
from pipeline.config.groups import DataConfig, MasksConfig
from pipeline.config.methods import MODELS
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import submitted_processes
from pipeline.runs import checkpoints
from pipeline.runs.folder import RunFolder, held
from pipeline.runs.identity import check_methods, check_same, folder_of, other_dataset
from pipeline.training import pretrained
from shards import store
from shards.manifest import Manifest, open_manifest, read_index
from shards.mask_sets import open_masks
from shards.masks import MaskPolicy

# Options of a model that change what it computes but none of its tensors' shapes.
NOT_IN_TENSORS = ("gate", "taps", "temperature", "propagation", "merge_edges")


def preflight(
    config: TrainConfig, world_size: int, first: bool = True, locks: bool = True
) -> RunFolder:
    """Check a configuration before workers start; opens the run, or ConfigError.

    first: this is the first node, whose rank 0 reads pretrained weights and locks the run; other
    nodes may start while it is locked. locks: check that the run is not locked.
    """
    check_processes(config, world_size)
    manifest = open_manifest(str(config.data.url), "data.url=")
    check_splits(config.data, manifest)
    check_sizes(config, manifest)
    check_masks(config.masks, config.validate.size)
    if first:
        pretrained.check(config)
    run = folder_of(config)
    check_same(config, run)
    check_methods(config, run)
    trained_on = run.facts.get("dataset", manifest.digest)
    if trained_on != manifest.digest:
        raise ConfigError(other_dataset(run.url, trained_on, manifest))
    if config.init is not None and not run.images_saved:  # a resume uses its own weights
        check_init(config, config.init)
    if first and locks:
        with held(run):
            return run  # unlocked again: rank 0 locks it while it trains
    return run


def check_inputs(config: TrainConfig, readable: Callable[[str | None], bool]) -> None:
    """Check a run before it is submitted; an earlier job may have to write what it reads."""
    urls = [url for url in (config.data.url, config.masks.url, config.init) if url]
    if all(readable(url) for url in urls if not url.startswith("models:")):
        preflight(config, submitted_processes(config))
    else:
        pretrained.check(config)
        check_same(config, folder_of(config))


def check_processes(config: TrainConfig, world_size: int) -> None:
    """Check the processes against the strategy and the batch."""
    strategy = config.parallel.strategy
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        raise ConfigError(
            f"parallel={strategy} needs DeepSpeed, which is not installed: run "
            f"`DS_BUILD_OPS=0 pip install -e .[deepspeed]`, or give parallel=ddp"
        )
    checks.workers(config, world_size)


# --- the dataset ---------------------------------------------------------------------------------


def check_splits(data: DataConfig, manifest: Manifest) -> None:
    """Check that the splits exist."""
    for key, split in (("train", data.train), ("validate", data.validate)):
        if not manifest.splits.get(split):
            known = ", ".join(sorted(manifest.splits))
            hint = (
                ": `shard data.holdout=0.01` with a new out= holds out images of train for it; "
                "test is for results only"
            )
            raise ConfigError(
                f"data.{key}={split} is not a split of {store.display(manifest.url)} (it has "
                f"{known}){hint if key == 'validate' else ''}"
            )


def check_sizes(config: TrainConfig, manifest: Manifest) -> None:
    """Check by the index that images are at least as large as the squares cut from them.

    Looks at the first shard of the training split, and at every validated image.
    """
    data = config.data
    if data.resize_short is not None:
        return
    checked = [("validate.size", config.validate.size, data.validate, config.validate.pairs)]
    if data.crop_mode != "resized":
        first = manifest.splits[data.train].shards[0]
        checked.insert(0, ("data.crop", data.crop, data.train, first.samples))
    for key, side, split, images in checked:
        if (smallest := min(_sides(manifest, split, images), default=side)) < side:
            raise ConfigError(
                f"{key}={side} is larger than images of {store.display(manifest.url)}: the "
                f"smallest side among those checked in {split} is {smallest}; lower {key}, or set "
                f"data.resize_short={side}"
            )


def _sides(manifest: Manifest, split: str, images: int) -> Iterator[int]:
    """Yield the shorter sides of a split's first `images` in key order."""
    for shard in manifest.splits[split].shards:
        index = read_index(manifest, split, shard).slice(0, images)
        yield from map(min, index["width"].to_pylist(), index["height"].to_pylist())
        images -= len(index)
        if images <= 0:  # read no more indexes than needed
            return


# --- holes ---------------------------------------------------------------------------------------


def check_masks(masks: MasksConfig, size: int) -> None:
    """Check that masks can be drawn, and that a mask set fits training and validation."""
    policy = MaskPolicy(**asdict(masks))
    if masks.url is None:
        return
    manifest = open_masks(masks.url, [])
    where = f"masks.url={store.display(manifest.url)}"
    sizes = {
        (row["width"], row["height"])
        for split in sorted(manifest.splits)
        for shard in manifest.splits[split].shards
        for row in read_index(manifest, split, shard)
        .select(["width", "height", "bucket", "ratio"])
        .to_pylist()
        if policy.takes(row["bucket"], row["ratio"])
    }
    if not sizes:
        raise ConfigError(
            f"{where} has no irregular mask with a hole ratio in ({masks.low}, {masks.high}]: "
            f"widen masks.low= and masks.high=, or make masks of these ratios"
        )
    if sizes != {(size, size)}:
        width, height = min(sizes - {(size, size)})
        raise ConfigError(
            f"{where} has masks of {width}x{height}, but validate.size={size}: set "
            f"validate.size={width}, or make masks with size={size}"
        )


# --- weights to start from -----------------------------------------------------------------------


def check_init(config: TrainConfig, init: str) -> None:
    """Check that the weights exist and, by their metadata, that they fit the model."""
    shown, model = store.display(init), asdict(config.model)
    if init.startswith("models:"):
        options = _registered(init, config)
    else:
        options = checkpoints.find(init, key="init=").state.get("model", {})
    name = options.get("name", model["name"])
    usual = model if name == model["name"] else {**asdict(MODELS[name]()), "name": model["name"]}
    wrong = [k for k, v in options.items() if usual.get(k, v) != v and k not in NOT_IN_TENSORS]
    if wrong:
        given = {f"model.{k}" if k != "name" else "model": options[k] for k in wrong}
        texts = (f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items())
        key = wrong[0]
        raise ConfigError(
            f"init={shown} holds weights of model.{key}={options[key]}, which do not fit "
            f"model.{key}={usual[key]}: give {' '.join(map(shlex.quote, texts))}"
        )


def _registered(init: str, config: TrainConfig) -> dict[str, Any]:
    """Return a registered version's model options; of an older version only the name."""
    from pipeline.tracking import errors
    from pipeline.tracking.client import connect, tracking_uri
    from pipeline.tracking.model_versions import find_version

    where = tracking_uri(config.root, config.cluster.env.get("MLFLOW_TRACKING_URI"))
    client = connect(where, make=False)
    try:
        with errors.explained(where):
            version = find_version(client, init)
    except errors.ServerError as error:  # a login node need not reach the server
        raise ConnectionError(f"init={init}: {error}") from None
    network = version.tags.get("lacuna.network")
    named = {"name": network} if network else {}
    options: dict[str, Any] = json.loads(version.tags.get("lacuna.model", "{}"))
    return {**named, **options}
