"""The images that the benchmarks read and write: crops of scikit-image's photographs."""

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.data import photographs
from shards.manifest import Manifest
from shards.pack import PackedSample
from shards.writer import write_set

SIDE = photographs.SIZE
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def crops() -> Iterator[NDArray[np.uint8]]:
    """Return the different crops, uint8 256×256×3."""
    for name in PHOTOGRAPHS:
        yield from map(np.array, photographs.crops(photographs.photograph(name)))


def jpegs(count: int) -> Iterator[bytes]:
    """Return `count` crops as JPEG, about 13 kB each; they repeat."""
    encoded = (simplejpeg.encode_jpeg(crop, quality=82, colorsubsampling="420") for crop in crops())
    return islice(cycle(encoded), count)


def loose_files(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEG files; returns their paths."""
    folder.mkdir()
    paths = [folder / f"{number:09d}.jpg" for number in range(count)]
    for path, encoded in zip(paths, jpegs(count)):
        path.write_bytes(encoded)
    return paths


def write(out: Path, count: int, per_shard: int) -> Manifest:
    """Write `count` JPEG crops as a sharded set with one split, train."""
    columns = {"width": SIDE, "height": SIDE, "mode": "RGB", "orientation": 1, "label": 0}
    samples = (
        PackedSample(f"{number}.jpg", encoded, "jpg", columns)
        for number, encoded in enumerate(jpegs(count))
    )
    options = {"images": count}
    return write_set(
        str(out), "bench", "images", {"train": samples}, options=options, per_shard=per_shard
    ).manifest
