"""Fixed pairs of held-out images and masks: how they are matched, hashed and loaded.

Both are taken in key order: image i gets mask i of every bucket. If a bucket has fewer masks than
there are images, its masks are used again from the first, and `reused` is set. Some buckets need no
mask set: `center`, the middle half of each side (MUSICAL), and those that validation draws while
training, `square` and `irregular` (of one hole-ratio bucket after another). Of a mask set,
validation takes masks that are trained on, evenly spread.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.common import console
from pipeline.config.groups import DRAWN, from_set
from pipeline.config.schema import EvaluateConfig, TrainConfig
from pipeline.evaluation import protocols
from shards import store
from shards.decode import Crop, Scratch, decode_crop
from shards.manifest import Manifest, open_manifest
from shards.mask_file import read_hole
from shards.mask_sets import SPLIT, open_masks
from shards.masks import BUCKETS, MaskPolicy, center, irregular, square
from shards.samples import ImageRecord, archive, payload, samples

SEED = 20210217  # of drawn masks, the same for every run


class Pair(NamedTuple):
    name: str  # unique: key of the image and number of the bucket
    image: ImageRecord
    mask: ImageRecord
    bucket: str


class PairBatch(NamedTuple):
    pairs: tuple[Pair, ...]
    images: torch.Tensor  # uint8 N×H×W×3
    masks: torch.Tensor  # uint8 N×H×W, 1 = hole


@dataclass(frozen=True)
class Pairs:
    """A fixed list of pairs, ordered by image; `digest` hashes contents, size and order."""

    pairs: tuple[Pair, ...]
    size: int  # side of the square that is scored
    resize_short: int | None
    digest: str
    reused: bool  # some masks are used for several images
    sides: Sequence[int] = ()  # of drawn rectangles, as `MaskPolicy` has them

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, start: int, stop: int) -> PairBatch:
        """Decode the pairs [start, stop)."""
        chosen = self.pairs[start:stop]
        images = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        crop, scratch = Crop(self.size, "center", self.resize_short), Scratch()
        for pair, out in zip(chosen, images):
            try:
                decode_crop(payload(pair.image), crop, 0, out, scratch)
            except ValueError as error:
                raise ValueError(f"image {pair.image.key}: {error}") from error
        masks = np.stack([self._mask(pair) for pair in chosen])
        return PairBatch(chosen, torch.from_numpy(images), torch.from_numpy(masks))

    def _mask(self, pair: Pair) -> NDArray[np.uint8]:
        if pair.bucket in DRAWN:
            return _draw(pair, self.size, self.sides)
        with Image.open(io.BytesIO(payload(pair.mask))) as file:
            mask = read_hole(file).astype(np.uint8)
        if mask.shape != (self.size, self.size):
            raise ValueError(
                f"masks are {mask.shape[0]}×{mask.shape[1]}, but protocol.size={self.size}: "
                f"make or import masks with size={self.size}, or set protocol.size="
            )
        return mask


def _draw(pair: Pair, size: int, sides: Sequence[int]) -> NDArray[np.uint8]:
    seed = (SEED, pair.image.key)
    if pair.bucket == "center":
        return center(size, size, *sides)
    if pair.bucket == "square":
        return square(size, size, seed, sides)
    low, high = BUCKETS[pair.image.key % len(BUCKETS)]
    return irregular(size, size, low, high, 0, seed)


def make_pairs(
    images: Manifest,
    split: str,
    masks: Manifest | None,
    buckets: list[str],
    size: int = 256,
    resize_short: int | None = None,
    limit: int | None = None,
    policy: MaskPolicy | None = None,
) -> Pairs:
    """Pair a split's images (the first `limit` in key order) with masks of every bucket.

    masks: a set with masks of these buckets; None if all are drawn.
    policy: of training; the set's masks that it takes make up every bucket, drawn rectangles have
        its sides.

    Raises ValueError for a split without images.
    """
    records = samples(images, split)[:limit]
    if not records:
        raise ValueError(f"split {split} of {store.display(images.url)} has no images")
    if masks and policy:
        taken = [m for m in samples(masks, SPLIT) if policy.takes(m.bucket, m.ratio)]
        spread = [taken[i * len(taken) // len(records)] for i in range(len(records))]
        by_bucket = dict.fromkeys(buckets, spread)
    else:
        by_bucket = _masks_by_bucket(masks, from_set(buckets))
    no_mask = [ImageRecord(-1, "", 0, 0, 0, 0, "")]
    pairs = []
    for i, image in enumerate(records):
        for number, bucket in enumerate(buckets):
            held = by_bucket.get(bucket, no_mask)
            pairs.append(Pair(f"{image.key:09d}-b{number}", image, held[i % len(held)], bucket))
    reused = any(len(held) < len(records) for held in by_bucket.values())
    sides = tuple(policy.sides) if policy else ()
    digest = _digest(pairs, size, resize_short, sides)
    return Pairs(tuple(pairs), size, resize_short, digest, reused, sides)


def _masks_by_bucket(masks: Manifest | None, buckets: list[str]) -> dict[str, list[ImageRecord]]:
    if not buckets:
        return {}
    assert masks is not None
    by_bucket: dict[str, list[ImageRecord]] = {bucket: [] for bucket in buckets}
    for split in sorted(masks.splits):
        for sample in samples(masks, split):
            if sample.bucket in by_bucket:
                by_bucket[sample.bucket].append(sample)
    return by_bucket


def _digest(pairs: list[Pair], size: int, resize_short: int | None, sides: Sequence[int]) -> str:
    drawn = "".join(f" {side}" for side in sides)
    sha = hashlib.sha256(f"{size} {resize_short}{drawn}\n".encode())
    for pair in pairs:
        sha.update(f"{pair.bucket} {pair.image.content:016x} {pair.mask.content:016x}\n".encode())
    return sha.hexdigest()


def pairs_of(config: EvaluateConfig) -> tuple[Pairs, dict[str, Any]]:
    """Return the protocol's pairs, and the facts about them that results carry."""
    protocol = config.protocol
    images = open_manifest(str(config.data.url), "data.url=")
    masks = open_masks(config.masks.url, from_set(protocol.buckets)) if config.masks.url else None
    protocols.check_images(images, config.split, protocol)
    if masks:
        protocols.check_masks(masks, protocol)
    select = (protocol.buckets, protocol.size, config.data.resize_short, config.limit)
    pairs = make_pairs(images, config.split, masks, *select)
    if pairs.reused:
        console.say("evaluate: fewer masks than images in a bucket; masks are reused")
    facts = {
        "protocol": protocol.name,
        "ssim": protocol.ssim,
        "size": protocol.size,
        "gate": list(protocol.gate),
        "protocol_version": protocol.version,
        "pairs": len(pairs),
        "images": len(pairs) // len(protocol.buckets),
        "pairs_digest": pairs.digest,
        "masks_reused": pairs.reused,
        "dataset": images.digest,
        "dataset_name": images.name,
        "split": config.split,
        "archive": archive(images, config.split),
        "limit": config.limit,
        "resize_short": config.data.resize_short,
        "data_url": store.display(images.url),
        "masks_url": store.display(masks.url) if masks else None,
        "masks": masks.digest if masks else None,
        "masks_name": masks.name if masks else None,
        "masks_count": sum(s.samples for s in masks.splits.values()) if masks else 0,
    }
    return pairs, facts


def validation_pairs(config: TrainConfig, manifest: Manifest) -> Pairs:
    """Pair the first `validate.pairs` images of the split with holes of the kind trained on."""
    policy = MaskPolicy(**asdict(config.masks))
    masks = open_manifest(policy.url) if policy.url else None
    size, short = config.validate.size, config.data.resize_short
    split, count = config.data.validate, config.validate.pairs
    return make_pairs(manifest, split, masks, [policy.kind], size, short, count, policy)
