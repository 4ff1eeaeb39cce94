"""What a protocol of the field fixes: which images, their stored size, and which masks."""

from __future__ import annotations

import hashlib
import posixpath

from pipeline.common.errors import ConfigError
from pipeline.config.groups import ProtocolConfig
from shards import field_masks, store
from shards.lookup import shards_of
from shards.manifest import Manifest, read_index


def check_images(images: Manifest, split: str, protocol: ProtocolConfig) -> None:
    """Raise ConfigError unless the split holds the protocol's images, none of them reduced."""
    if not (protocol.images or protocol.stored):
        return
    where = f"data.url={store.display(images.url)} split={split}"
    names, small = [], []
    for shard in shards_of(images, split):
        index = read_index(images, split, shard)
        sides = zip(*(index[name].to_pylist() for name in ("src", "width", "height")))
        for src, width, height in sides:
            names.append(posixpath.basename(src))
            if min(width, height) < (protocol.stored or 0):
                small.append(f"{src}, {width}×{height}")
    if small:
        raise ConfigError(
            f"{where}: {len(small)} of {len(names)} images are smaller than the {protocol.stored} "
            f"pixels that protocol={protocol.name} needs, first {min(small)}: shard the original "
            "images with data.store_short=null; leave out those that are published smaller by "
            f"data.min_side={protocol.stored}, with protocol.images=null; none is upscaled"
        )
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    if protocol.images not in (None, digest):
        raise ConfigError(
            f"{where}: its {len(names)} images are not those of protocol={protocol.name} (sha256 "
            f"of the sorted names {digest[:12]}, expected {str(protocol.images)[:12]}): shard "
            "those, or give protocol.images=null for others"
        )


def check_masks(masks: Manifest, protocol: ProtocolConfig) -> None:
    """Raise ConfigError unless the masks are those that the protocol draws."""
    if not protocol.drawn:
        return
    wanted = field_masks.set_name(protocol.drawn, protocol.size, protocol.seed, protocol.version)
    if masks.name != wanted:
        raise ConfigError(
            f"masks.url={store.display(masks.url)} is the set {masks.name}, but protocol="
            f"{protocol.name} needs {wanted}: python -m pipeline masks kind={protocol.drawn} "
            f"size={protocol.size} seed={protocol.seed} per_bucket=IMAGES out=DIR"
        )
