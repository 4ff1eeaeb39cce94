"""A small evaluation: five photographs in two shards, three masks per bucket in three shards."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from pipeline.evaluation import scoring
from shards.masks import FIXED, NAMES, irregular, square
from shards.pack import PackedSample
from shards.writer import write_set

SIZE, IMAGES, MASKS = 64, 5, 3
BUCKETS = [*NAMES, FIXED]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def crops(count: int = IMAGES, size: int = SIZE) -> list[np.ndarray]:
    photograph = data.astronaut()
    return [photograph[40 * i : 40 * i + size, 200 : 200 + size] for i in range(count)]


def hole(bucket: str, i: int, size: int = SIZE) -> np.ndarray:
    if bucket == FIXED:
        return square(size, size, [7, i])
    low, high = (float(x) for x in bucket[1:-1].split(","))
    return irregular(size, size, low, high, 0, [7, i])


def image_set(out: Path, images: list[np.ndarray], per_shard: int = 3, split: str = "val") -> str:
    """URL of a set of the images, stored as PNG."""
    samples = [
        PackedSample(f"{i}.png", png(p), "png", _row(p, "images")) for i, p in enumerate(images)
    ]
    write_set(str(out), "astronaut", "images", {split: samples}, options={}, per_shard=per_shard)
    return str(out)


def mask_set(out: Path, size: int = SIZE, buckets: list[str] = BUCKETS) -> str:
    samples = []
    for bucket in buckets:
        for i in range(MASKS):
            mask = hole(bucket, i, size)
            columns = {**_row(mask, "masks"), "bucket": bucket, "ratio": float(mask.mean())}
            samples.append(PackedSample(f"{bucket}-{i}", png(mask * 255), "png", columns))
    write_set(str(out), "masks", "masks", {"masks": samples}, options={}, per_shard=8)
    return str(out)


def score(inpaint, pairs, batch: int = 8, rank: int = 0, world_size: int = 1):
    """The table of one rank's pairs."""
    starts = range(0, len(pairs), batch)[rank::world_size]
    return scoring.score(scoring.predictor(inpaint, "cpu"), pairs, starts, batch, "cpu")


def _row(array: np.ndarray, kind: str) -> dict:
    height, width = array.shape[:2]
    columns = {"width": width, "height": height, "mode": "RGB" if array.ndim == 3 else "L"}
    return columns | ({"orientation": 1, "label": -1} if kind == "images" else {})
