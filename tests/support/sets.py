"""Small sharded sets for tests, written by the real writer from images that differ by key."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from shards.manifest import Manifest
from shards.pack import PackedSample
from shards.writer import write_set


def smooth_image(number: int, height: int = 40, width: int = 40) -> np.ndarray:
    """A smooth color image, another one for each number, uint8 H×W×3."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def samples(count: int, side: int = 40) -> Iterator[PackedSample]:
    for number in range(count):
        yield sample(f"{number}.jpg", jpeg(smooth_image(number, side, side)), side, side)


def sample(src: str, data: bytes, height: int, width: int, ext: str = "jpg") -> PackedSample:
    columns = {"width": width, "height": height, "mode": "RGB", "orientation": 1, "label": 0}
    return PackedSample(src, data, ext, columns)


def image_set(out: Path | str, count: int, per_shard: int = 64, side: int = 40) -> Manifest:
    """`count` pictures in the split train; sample n is `smooth_image(n)`."""
    options = {"count": count, "side": side}
    splits = {"train": samples(count, side)}
    done = write_set(str(out), "test", "images", splits, options=options, per_shard=per_shard)
    return done.manifest
