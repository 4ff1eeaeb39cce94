"""Which held-out picture gets which mask: fixed, hashed, and read back pair by pair.

Pictures in key order meet masks in key order: picture i has mask i of every bucket. Where a bucket
holds fewer masks than there are pictures its masks go round again, and `reused` says so. The
bucket `center` needs no mask set: the middle half of each side is the hole (MUSICAL).
"""

import hashlib
import io
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from shards import store
from shards.decode import Crop, Scratch, into
from shards.manifest import Manifest, read_index
from shards.masks import center

CENTER = "center"


class Sample(NamedTuple):
    """One member of a sharded set and where its bytes lie."""

    key: int
    url: str
    offset: int
    size: int
    crc32: int
    content: int  # hash of the bytes
    bucket: str = ""


class Pair(NamedTuple):
    name: str  # unique: key of the picture, number of the bucket
    image: Sample
    mask: Sample
    bucket: str


class PairBatch(NamedTuple):
    pairs: tuple[Pair, ...]
    images: torch.Tensor  # uint8 N×H×W×3
    masks: torch.Tensor  # uint8 N×H×W, 1 = hole


@dataclass(frozen=True)
class Pairs:
    """A fixed list of pairs, picture by picture; `digest` hashes contents, size and order."""

    pairs: tuple[Pair, ...]
    size: int  # side of the square that is scored
    resize_short: int | None
    dataset: str  # digest of the set of pictures
    digest: str
    reused: bool  # some masks serve several pictures

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, start: int, stop: int) -> PairBatch:
        """Pairs [start, stop), decoded."""
        chosen = self.pairs[start:stop]
        images = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        crop, scratch = Crop(self.size, "center", self.resize_short), Scratch()
        for pair, out in zip(chosen, images):
            try:
                into(payload(pair.image), crop, 0, out, scratch)
            except ValueError as error:
                raise ValueError(f"picture {pair.image.key}: {error}") from error
        masks = np.stack([self._mask(pair) for pair in chosen])
        return PairBatch(chosen, torch.from_numpy(images), torch.from_numpy(masks))

    def _mask(self, pair: Pair) -> NDArray[np.uint8]:
        if pair.bucket == CENTER:
            return center(self.size, self.size)
        with Image.open(io.BytesIO(payload(pair.mask))) as picture:
            mask = (np.asarray(picture.convert("L")) > 127).astype(np.uint8)
        if mask.shape != (self.size, self.size):
            raise ValueError(
                f"masks are {mask.shape[0]}×{mask.shape[1]}, the protocol's pictures "
                f"{self.size}×{self.size}: make or import masks with size={self.size}, "
                "or set protocol.size="
            )
        return mask


def make_pairs(
    images: Manifest,
    split: str,
    masks: Manifest | None,
    buckets: list[str],
    size: int = 256,
    resize_short: int | None = None,
    limit: int | None = None,
) -> Pairs:
    """Pair a split's pictures (the first `limit` in key order) with masks of every bucket.

    Raises ValueError for a split or a bucket without samples, and where masks are needed but
    `masks` is None.
    """
    pictures = samples(images, split)[:limit]
    if not pictures:
        raise ValueError(f"split {split} of {store.display(images.url)} holds no pictures")
    held = _masks_by_bucket(masks, [b for b in buckets if b != CENTER])
    nothing = Sample(-1, "", 0, 0, 0, 0, CENTER)
    pairs = []
    for i, picture in enumerate(pictures):
        for number, bucket in enumerate(buckets):
            mask = nothing if bucket == CENTER else held[bucket][i % len(held[bucket])]
            pairs.append(Pair(f"{picture.key:09d}-b{number}", picture, mask, bucket))
    reused = any(len(found) < len(pictures) for found in held.values())
    return Pairs(
        tuple(pairs), size, resize_short, images.digest, _digest(pairs, size, resize_short), reused
    )


def samples(manifest: Manifest, split: str) -> list[Sample]:
    """A split's samples in key order. ValueError lists the splits there are."""
    if split not in manifest.splits:
        raise ValueError(
            f"{store.display(manifest.url)} has no split {split!r}: set split= to one of "
            f"{', '.join(sorted(manifest.splits))}"
        )
    found = []
    for shard in manifest.splits[split].shards:
        index = read_index(manifest, split, shard)
        url = manifest.shard_url(split, shard)
        names = ["sample_id", "offset", "size", "crc32", "content_hash"]
        columns = [index[name].to_pylist() for name in names]
        bucket = index["bucket"] if "bucket" in index.column_names else pa.nulls(len(index))
        for row in zip(*columns, bucket.to_pylist()):
            found.append(Sample(row[0], url, row[1], row[2], row[3], row[4], row[5] or ""))
    return sorted(found)


def _masks_by_bucket(masks: Manifest | None, buckets: list[str]) -> dict[str, list[Sample]]:
    if not buckets:
        return {}
    if masks is None:
        raise ValueError(
            "this protocol takes its masks from a set: masks.url= is missing "
            "(`masks out=DIR` writes one)"
        )
    if masks.kind != "masks":
        raise ValueError(
            f"{store.display(masks.url)} holds {masks.kind}, no masks: masks.url= takes what "
            "`masks out=` wrote"
        )
    held: dict[str, list[Sample]] = {bucket: [] for bucket in buckets}
    for split in sorted(masks.splits):
        for sample in samples(masks, split):
            held.setdefault(sample.bucket, []).append(sample)
    empty = [bucket for bucket in buckets if not held[bucket]]
    if empty:
        raise ValueError(
            f"{store.display(masks.url)} has no masks in {', '.join(empty)}: make or import them, "
            "or leave the bucket out of protocol.buckets="
        )
    return held


def _digest(pairs: list[Pair], size: int, resize_short: int | None) -> str:
    sha = hashlib.sha256(f"{size} {resize_short}\n".encode())
    for pair in pairs:
        sha.update(f"{pair.bucket} {pair.image.content:016x} {pair.mask.content:016x}\n".encode())
    return sha.hexdigest()


@lru_cache(maxsize=64)
def payload(sample: Sample) -> bytes:
    """The sample's bytes as they are stored, checked; ValueError where they are other bytes."""
    for _ in range(3):
        data = store.read(sample.url, sample.offset, sample.offset + sample.size)
        if zlib.crc32(data) == sample.crc32:
            return data
    raise ValueError(
        f"sample {sample.key} of {store.display(sample.url)} has other bytes than its index "
        "says, read three times: `shard verify` the set"
    )
