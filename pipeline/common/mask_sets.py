"""Open the set of masks that a command reads."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.errors import ConfigError
from shards import store
from shards.manifest import Manifest, open_manifest, read_index


def open_masks(url: str, buckets: Sequence[str]) -> Manifest:
    """Open the set at `masks.url=`; ConfigError if it has no masks, or none in one of `buckets`."""
    manifest = open_manifest(url)
    where = f"masks.url={store.display(manifest.url)}"
    if manifest.kind != "masks":
        raise ConfigError(
            f"{where} holds {manifest.kind}, not masks: give the output of `masks out=`"
        )
    indexes = [(n, shard) for n, split in manifest.splits.items() for shard in split.shards]
    held = {name for n, s in indexes for name in read_index(manifest, n, s)["bucket"].to_pylist()}
    if empty := [bucket for bucket in buckets if bucket not in held]:
        raise ConfigError(
            f"{where} has no masks in {', '.join(empty)}: make or import them, or (in `evaluate`) "
            "remove the bucket from protocol.buckets="
        )
    return manifest
