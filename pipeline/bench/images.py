"""The images that the benchmarks read and write: random crops of scikit-image's photographs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.data.photographs import photograph
from shards.manifest import Manifest
from shards.pack import PackedSample
from shards.writer import write_set

SIDE = 256
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def crops(count: int, side: int = SIDE) -> Iterator[NDArray[np.uint8]]:
    """`count` crops, uint8 side×side×3, the same ones in every run; `side` up to 400 pixels."""
    random = np.random.default_rng(0)
    photographs = [np.asarray(photograph(name)) for name in PHOTOGRAPHS]
    large = [pixels for pixels in photographs if min(pixels.shape[:2]) >= side]
    for number in range(count):
        whole = large[number % len(large)]
        top, left = (random.integers(0, n - side + 1) for n in whole.shape[:2])
        yield np.ascontiguousarray(whole[top : top + side, left : left + side])


def jpegs(count: int, side: int = SIDE) -> Iterator[bytes]:
    """The crops as JPEG, about 13 kB each at 256×256."""
    for crop in crops(count, side):
        yield simplejpeg.encode_jpeg(crop, quality=82, colorsubsampling="420")


def write(out: Path, count: int, side: int, per_shard: int) -> Manifest:
    """Write the JPEG crops as a sharded set with one split, train."""
    columns = {"width": side, "height": side, "mode": "RGB", "orientation": 1, "label": 0}
    samples = (
        PackedSample(f"{number}.jpg", encoded, "jpg", columns)
        for number, encoded in enumerate(jpegs(count, side))
    )
    options = {"images": count, "side": side}
    done = write_set(
        str(out), "bench", "images", {"train": samples}, options=options, per_shard=per_shard
    )
    return done.manifest
