"""Holes of the test sets of LaMa and MAT: our own draws from the distributions that they publish.

    lama  Suvorov et al., 2022, and configs/data_gen/random_*.yaml of advimman/lama (786f593): brush
          strokes or, with probability 0.3 / 1.3, boxes; masks of more than half a hole are dropped.
          Drawn on the square that is scored; LaMa draws on the whole image and crops.
    mat   Li et al., 2022, and datasets/mask_generator_512*.py of fenglinglwb/MAT: boxes, which may
          reach over the edges, and brush strokes together.

A change that alters a pixel of any mask raises VERSION. uint8, 1 = hole.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

VERSION = 1
MOST = 0.5  # hole ratio of LaMa's masks
BOXES = 0.3 / 1.3  # share of LaMa's medium and thick masks that consist of boxes


class Lama(NamedTuple):
    """Bounds, both included; a brush is at least 5 pixels wide, a segment at least 10 long."""

    strokes: tuple[int, int]
    width: int
    length: int
    boxes: tuple[int, int] = (0, 0)
    sides: tuple[int, int] = (0, 0)
    margin: int = 0


class Mat(NamedTuple):
    """The most boxes of up to half of the side, boxes of up to the side, and brush strokes."""

    half: int
    whole: int
    strokes: int


# Names of the buckets and what is drawn, by kind and side.
KINDS: dict[tuple[str, int], dict[str, Lama | Mat]] = {
    ("lama", 256): {
        "thin": Lama((4, 51), 14, 49),
        "medium": Lama((4, 6), 54, 109, (1, 5), (10, 50)),
        "thick": Lama((1, 6), 104, 209, (1, 3), (30, 150), 10),
    },
    ("lama", 512): {
        "thin": Lama((4, 71), 24, 109),
        "medium": Lama((4, 11), 104, 209, (1, 5), (30, 150)),
        "thick": Lama((1, 6), 254, 459, (1, 4), (30, 300), 10),
    },
    ("mat", 512): {"small": Mat(2, 1, 3), "large": Mat(4, 2, 8)},
}


def draw(kind: str, size: int, bucket: str, seed: int, i: int) -> np.ndarray:
    """Draw mask i of a bucket, uint8 size × size of {0, 1}; it depends on the arguments alone."""
    buckets = KINDS[kind, size]
    words = [VERSION, seed, list(buckets).index(bucket), i, *kind.encode()]
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    shape = buckets[bucket]
    while True:
        mask = _lama(shape, size, random) if isinstance(shape, Lama) else _mat(shape, size, random)
        ratio = mask.mean()
        if ratio <= MOST if kind == "lama" else 0 < ratio < 1:
            return mask


def set_name(kind: str, size: int, seed: int, version: int = VERSION) -> str:
    """Return the name of a set of such masks."""
    return f"{kind}-{size}-seed{seed}-v{version}"


def masks(kind: str, size: int, count: int, seed: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield bucket, number and mask of `count` masks of each bucket."""
    for bucket in KINDS[kind, size]:
        for i in range(count):
            yield bucket, i, draw(kind, size, bucket, seed, i)


def _lama(shape: Lama, size: int, random: Generator) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    if shape.boxes[1] and random.random() < BOXES:
        low, high = shape.sides
        for _ in range(random.integers(*shape.boxes, endpoint=True)):
            sides = random.integers(low, min(high, size - 2 * shape.margin - 1), 2, endpoint=True)
            x, y = random.integers(shape.margin, size - shape.margin - sides, endpoint=True)
            mask[y : y + sides[1], x : x + sides[0]] = 1
        return mask
    for stroke in range(random.integers(*shape.strokes, endpoint=True)):
        at = random.integers(size, size=2)
        for _ in range(random.integers(1, 5, endpoint=True)):
            angle = random.integers(4) + 0.01  # radians
            length = random.integers(10, shape.length, endpoint=True)
            width = int(random.integers(5, shape.width, endpoint=True))
            step = np.array([math.sin(angle) * (1 if stroke % 2 else -1), math.cos(angle)]) * length
            end = (at + step).astype(np.int64).clip(0, size)
            cv2.line(mask, at.tolist(), end.tolist(), 1, width)
            at = end
    return mask


def _mat(shape: Mat, size: int, random: Generator) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    for most, side in ((shape.half, size // 2), (shape.whole, size)):
        for _ in range(random.integers(most, endpoint=True)):
            sides = random.integers(side, size=2)
            x, y = random.integers(-(sides // 2), size - sides + sides // 2)
            mask[max(y, 0) : y + sides[1], max(x, 0) : x + sides[0]] = 1
    mean = math.hypot(size, size) / 8  # length of a segment
    brush = np.zeros_like(mask)
    for _ in range(random.integers(shape.strokes, endpoint=True)):
        count = random.integers(4, 18)
        # Around a mean turn of 2π/5, alternately to either side, with a spread of this stroke.
        low, high = 2 * math.pi / 5 + np.array([-1, 1]) * random.uniform(0, 2 * math.pi / 15, 2)
        angles = random.uniform(low, high, count) * np.where(np.arange(count) % 2, 1, -1)
        lengths = random.normal(mean, mean // 2, count).clip(0, 2 * mean)
        points = [random.integers(size, size=2)]
        for angle, length in zip(angles, lengths):
            step = length * np.array([math.cos(angle), math.sin(angle)])
            points.append((points[-1] + step).clip(0, size).astype(np.int64))
        path = np.array(points, np.int32)
        cv2.polylines(brush, [path], False, 1, int(random.uniform(12, 48)))
    for axis in (0, 1):
        if random.random() < 0.5:
            brush = np.flip(brush, axis)
    return mask | brush
