"""Open what `evaluate` reads, before a job of it is queued; without torch."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.common.errors import ConfigError
from pipeline.config.groups import from_set
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import protocols
from pipeline.runs import checkpoints
from shards import store
from shards.manifest import open_manifest
from shards.mask_sets import open_masks


def check_inputs(config: EvaluateConfig, readable: Callable[[str | None], bool]) -> None:
    """Raise ValueError unless the sets and the checkpoint that are readable fit the protocol."""
    if readable(config.data.url):
        images = open_manifest(str(config.data.url), "data.url=")
        splits = images.splits
        if not splits.get(config.split):
            raise ConfigError(
                f"split={config.split} is not a split of {store.display(str(config.data.url))} "
                f"(it has {', '.join(sorted(splits))})"
            )
        protocols.check_images(images, config.split, config.protocol)
    if readable(config.masks.url):
        masks = open_masks(str(config.masks.url), from_set(config.protocol.buckets))
        protocols.check_masks(masks, config.protocol)
    if readable(config.checkpoint):
        checkpoints.find(str(config.checkpoint), key="checkpoint=")
