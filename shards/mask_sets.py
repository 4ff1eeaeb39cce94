"""Mask sets: holes drawn or imported once and stored as PNG in a sharded set with a digest.

A set of kind "masks" has one split, "masks"; members are 8-bit PNG, 255 = hole; the index has the
bucket and the exact ratio of each mask.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from shards import field_masks, store
from shards.fetch import open_reader
from shards.manifest import Manifest, open_manifest, read_index
from shards.masks import (
    BUCKETS,
    FIXED,
    NAMES,
    MaskPolicy,
    border_width,
    draw,
    irregular,
    square,
)
from shards.order import mix
from shards.pack import PackedSample
from shards.writer import Finished, write_set

SPLIT = "masks"
PER_SHARD = 2000
_PICK = 4  # domain of the choice's random bits

HoleSampler = Callable[[int, int, int], np.ndarray]  # (seed, epoch, key) → uint8 H×W, 1 = hole


class Mask(NamedTuple):
    """A mask to be written to a set."""

    src: str
    hole: np.ndarray  # uint8 H×W of {0, 1}
    bucket: str


def draw_masks(
    size: int, per_bucket: int, seed: int, border: float = 0.5, fixed: bool = True
) -> Iterator[Mask]:
    """Draw `per_bucket` masks of each bucket, size × size, a share `border` of them off the border.

    Mask i of a bucket does not depend on `per_bucket`. With `fixed`, follow as many random squares
    of a quarter of the pixels.
    """
    width = border_width(size, size)
    for number, ((low, high), name) in enumerate(zip(BUCKETS, NAMES)):
        for i in range(per_bucket):
            kept = width if (i + 1) * border // 1 > i * border // 1 else 0
            hole = irregular(size, size, low, high, kept, (seed, number, i))
            yield Mask(f"{name}/{i:06d}{'-border' if kept else ''}", hole, name)
    yield from squares(size, per_bucket if fixed else 0, seed)


def squares(size: int, count: int, seed: int) -> Iterator[Mask]:
    """Draw the bucket of random squares of a quarter of the pixels."""
    for i in range(count):
        yield Mask(f"{FIXED}/{i:06d}", square(size, size, (seed, len(BUCKETS), i)), FIXED)


def write_mask_set(
    out: str,
    size: int,
    per_bucket: int,
    seed: int,
    border: float = 0.5,
    fixed: bool = True,
) -> Finished:
    """Draw an evaluation set and publish it; a finished set of the same settings is kept."""
    if size < 8 or per_bucket < 1:
        raise ValueError(
            f"invalid size={size}, per_bucket={per_bucket}: expected at least 8 pixels and one mask"
        )
    if not 0 <= border <= 1:
        raise ValueError(f"invalid border={border}: expected a share of the masks, 0 to 1")
    options = {
        "size": size,
        "per_bucket": per_bucket,
        "seed": seed,
        "border": border,
        "fixed": fixed,
        "rasteriser": cv2.__version__,
    }
    return write_masks(out, "irregular", draw_masks(size, per_bucket, seed, border, fixed), options)


def write_field_set(out: str, kind: str, size: int, per_bucket: int, seed: int) -> Finished:
    """Draw the masks of another method's protocol and publish them, as `write_mask_set` does."""
    options = {"size": size, "per_bucket": per_bucket, "rasteriser": cv2.__version__}
    drawn = field_masks.masks(kind, size, per_bucket, seed)
    masks = (Mask(f"{bucket}/{i:06d}", hole, bucket) for bucket, i, hole in drawn)
    return write_masks(out, field_masks.set_name(kind, size, seed), masks, options)


def write_masks(out: str, name: str, masks: Iterator[Mask], options: dict[str, Any]) -> Finished:
    """Publish masks as a set; `options` must determine every byte of it."""
    samples = {SPLIT: map(_sample, masks)}
    return write_set(out, name, "masks", samples, options=options, per_shard=PER_SHARD)


def _sample(mask: Mask) -> PackedSample:
    height, width = mask.hole.shape
    encoded, data = cv2.imencode(".png", mask.hole * 255)
    assert encoded
    columns = {
        "width": width,
        "height": height,
        "mode": "L",
        "bucket": mask.bucket,
        "ratio": float(mask.hole.mean(dtype=np.float64)),
    }
    return PackedSample(mask.src, data.tobytes(), "png", columns)


def open_masks(url: str, buckets: Sequence[str]) -> Manifest:
    """Open the set at `masks.url=`; ValueError if it has no masks, or none in one of `buckets`."""
    manifest = open_manifest(url, "masks.url=")
    where = f"masks.url={store.display(manifest.url)}"
    if manifest.kind != "masks":
        raise ValueError(
            f"{where} holds {manifest.kind}, not masks: give the output of `masks out=`"
        )
    indexes = [(n, shard) for n, split in manifest.splits.items() for shard in split.shards]
    held = {name for n, s in indexes for name in read_index(manifest, n, s)["bucket"].to_pylist()}
    if empty := [bucket for bucket in buckets if bucket not in held]:
        raise ValueError(
            f"{where} has no masks in {', '.join(empty)}: make or import them, or (in `evaluate`) "
            "remove the bucket from protocol.buckets="
        )
    return manifest


class MaskSet:
    """A mask set; masks are read on access."""

    def __init__(self, manifest: Manifest) -> None:
        if manifest.kind != "masks":
            raise ValueError(
                f"{store.display(manifest.url)} holds {manifest.kind}, not masks: "
                "give a set written by `masks out=`"
            )
        self._reader = open_reader(manifest, SPLIT)
        shards = manifest.splits[SPLIT].shards
        tables = [read_index(manifest, SPLIT, shard) for shard in shards]
        self.ratios = np.concatenate([table["ratio"].to_numpy() for table in tables])
        self.buckets = [name for table in tables for name in table["bucket"].to_pylist()]
        self._first = np.cumsum([0, *(shard.samples for shard in shards)])

    def __len__(self) -> int:
        return len(self.ratios)

    def __getitem__(self, place: int) -> np.ndarray:
        """Return the place-th mask, uint8 H×W of {0, 1}."""
        shard = int(np.searchsorted(self._first, place, "right")) - 1
        row = place - int(self._first[shard])
        sample = self._reader.sample(shard, row)
        hole = cv2.imdecode(np.frombuffer(sample.data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if hole is None:
            raise ValueError(f"{self._reader.indexes.where(shard, row)}: not a PNG")
        return (hole > 127).astype(np.uint8)


def hole_sampler(policy: MaskPolicy, height: int, width: int) -> HoleSampler | None:
    """Return a function that draws the hole of a training sample, fixed by (seed, epoch, key).

    None for the policy `none`.
    """
    if policy.kind == "none":
        return None
    if policy.url is None:
        return lambda seed, epoch, key: draw(policy, height, width, seed, epoch, key)
    masks = MaskSet(open_manifest(policy.url))
    places = np.flatnonzero(list(map(policy.takes, masks.buckets, masks.ratios)))
    if not len(places):
        raise ValueError(
            f"{store.display(policy.url)} has no irregular mask of a ratio in "
            f"({policy.low}, {policy.high}]; change masks.low or masks.high"
        )

    def pick(seed: int, epoch: int, key: int) -> np.ndarray:
        hole = masks[int(places[mix(seed, epoch, key, _PICK) % len(places)])]
        if hole.shape == (height, width):
            return hole
        return cv2.resize(hole, (width, height), interpolation=cv2.INTER_NEAREST)

    return pick
