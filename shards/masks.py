"""Holes: irregular ones of an exact ratio, center and random squares. uint8, 1 = hole.

An irregular mask draws its number k of hole pixels uniformly between its bounds, then brush strokes
until at least k pixels are covered, and cuts the last stroke back to the pixels nearest its start:
exactly k pixels are hole, for any ratio, and no mask is rejected. Free-form strokes are after Yu
et al. (Free-Form Image Inpainting with Gated Convolution, 2019); the six buckets and the constraint
that keeps holes off the border are Liu et al.'s (Image Inpainting for Irregular Holes, 2018).

The pixels depend on OpenCV's line rasterizer, so masks for published results are drawn once and
stored (`mask_sets`); training draws a new mask for each sample of each epoch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from shards import store

BUCKETS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))
NAMES = tuple(f"({low},{high}]" for low, high in BUCKETS)
FIXED = "fixed"  # the bucket of center and random squares
BORDER = 50 / 512  # of the shorter side, kept known by the border constraint (Liu et al. 2018)

_CORNER = 2 * math.pi / 5  # a stroke's mean turn and its spread (Yu et al. 2019)
_SPREAD = 2 * math.pi / 15
_MARGIN = 0.08
_GROUP = 8  # strokes drawn from the generator at a time


def bucket(ratio: float) -> str | None:
    """Return the name of the bucket (low, high] of a hole ratio; None outside (0.01, 0.6]."""
    for (low, high), name in zip(BUCKETS, NAMES):
        if low < ratio <= high:
            return name
    return None


def border_width(height: int, width: int) -> int:
    """Return how many pixels the border constraint keeps known at each edge: 50 at 512 pixels."""
    return round(min(height, width) * BORDER)


def irregular(
    height: int, width: int, low: float, high: float, border: int, seed_words: Sequence[int]
) -> np.ndarray:
    """Draw a mask of hole ratio in (low, high], uint8 height × width of {0, 1}, by `seed_words`.

    The ratio is uniform over the pixel counts between the bounds; `border` pixels at each edge
    stay known. ValueError when no count is between the bounds, or does not fit inside the border.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed_words))))
    count = _count(height, width, low, high, border, random)
    inner = np.zeros((height - 2 * border, width - 2 * border), np.uint8)
    heavy = count / inner.size
    before = np.empty_like(inner)
    covered = 0
    while True:
        for path, thickness in _strokes(inner.shape, heavy, random):
            np.copyto(before, inner)
            cv2.polylines(inner, [path], False, 1, thickness)
            reached = cv2.countNonZero(inner)
            if reached > count:
                _cut(inner, before, path, thickness, count - covered)
            if reached >= count:
                return np.pad(inner, border)
            covered = reached


def _count(
    height: int, width: int, low: float, high: float, border: int, random: np.random.Generator
) -> int:
    """Draw the number of hole pixels."""
    pixels = height * width
    room = max(0, height - 2 * border) * max(0, width - 2 * border)
    least, most = math.floor(low * pixels), math.ceil(high * pixels)
    while least / pixels <= low:  # the products may round to either side of a whole number
        least += 1
    while most / pixels > high:
        most -= 1
    if not 0 <= low < high <= 1 or least > most:
        raise ValueError(f"no mask of {width}x{height} has a hole ratio in ({low}, {high}]")
    if most > room:
        raise ValueError(
            f"a hole ratio of {high} does not fit into {width}x{height} with {border} pixels of "
            f"border (at most {room / pixels:.3f}): lower high or border"
        )
    return int(random.integers(least, most, endpoint=True))


def _strokes(
    shape: tuple[int, ...], heavy: float, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, int]]:
    """Draw brush strokes, thicker and longer in heavier masks: ((x, y) int32 points, thickness)."""
    height, width = shape
    side = min(height, width)
    vertices = 2 + (random.random(_GROUP) * (3 + 10 * heavy)).astype(np.int64)
    thickness = side * (0.03 + 0.12 * random.random(_GROUP)) * (0.25 + 1.2 * math.sqrt(heavy))
    turn, reach = random.random((2, _GROUP, int(vertices.max())))
    turn = _CORNER + _SPREAD * (2 * turn - 1)
    turn[:, ::2] *= -1  # zigzag
    heading = np.cumsum(turn, axis=1) + 2 * math.pi * random.random((_GROUP, 1))
    step = side * (0.05 + (0.10 + 0.20 * heavy) * reach)
    points = np.empty((_GROUP, turn.shape[1] + 1, 2))
    margin = _MARGIN * side  # strokes may start and continue outside, else edges get fewer holes
    across = np.array([width - 1, height - 1]) + 2 * margin
    points[:, 0] = random.random((_GROUP, 2)) * across
    points[:, 1:, 0] = step * np.cos(heading)
    points[:, 1:, 1] = step * np.sin(heading)
    points = np.cumsum(points, axis=1)
    points = np.mod(points, 2 * across)
    points = np.minimum(points, 2 * across - points) - margin  # reflected at the outer edges
    for path, last, thick in zip(np.rint(points).astype(np.int32), vertices, thickness):
        yield path[: last + 1], max(1, round(thick))


def _cut(mask: np.ndarray, before: np.ndarray, path: np.ndarray, thick: int, keep: int) -> None:
    """Keep, of the pixels that the last stroke added, the `keep` nearest its start."""
    low = np.maximum(path.min(axis=0) - thick, 0)
    high = path.max(axis=0) + thick + 1
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    old = before[box]
    added = np.flatnonzero(mask[box] > old)
    across = np.arange(old.shape[1]) + (low[0] - path[0, 0])
    down = np.arange(old.shape[0]) + (low[1] - path[0, 1])
    distance = np.add.outer(down * down, across * across).reshape(-1)[added]
    rank = distance * old.size + added  # no ties, so that every NumPy version picks the same pixels
    new = old.copy()
    new.reshape(-1)[added[np.argpartition(rank, keep - 1)[:keep]]] = 1
    mask[box] = new


def center(height: int, width: int, side: int | None = None) -> np.ndarray:
    """Return the central square of that side, or half of each side (128×128 of 256×256)."""
    rows, columns = (side, side) if side else (height // 2, width // 2)
    return _box(height, width, (height - rows) // 2, (width - columns) // 2, rows, columns)


def square(
    height: int, width: int, seed_words: Sequence[int], sides: Sequence[int] = ()
) -> np.ndarray:
    """Return a rectangle at a uniformly random place inside the image.

    sides: the shortest and the longest, both drawn uniformly; none: half of each side.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed_words))))
    rows, columns = height // 2, width // 2
    if sides:
        rows, columns = random.integers(sides[0], sides[1], 2, endpoint=True).tolist()
    top = random.integers(0, height - rows, endpoint=True)
    left = random.integers(0, width - columns, endpoint=True)
    return _box(height, width, int(top), int(left), rows, columns)


def _box(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + rows, left : left + columns] = 1
    return mask


@dataclass(frozen=True)
class MaskPolicy:
    """The kind of hole of training samples.

    `irregular`: ratio uniform over (low, high]; a share `border` has the border constraint.
    `external`: a mask of the mask set at `url` with a ratio in (low, high]. `center`, `square`: a
    quarter of the pixels, or a rectangle of `sides`, pixels: one, or the shortest and the longest.
    `none`: no hole.
    """

    kind: Literal["irregular", "center", "square", "external", "none"] = "irregular"
    low: float = 0.01
    high: float = 0.6
    border: float = 0.5
    url: str | None = None
    sides: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("irregular", "center", "square", "external", "none"):
            raise ValueError(
                f"invalid masks.kind={self.kind!r}: choose one of irregular, center, square, "
                "external, none"
            )
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"masks.low={self.low} is not below masks.high={self.high}: expected two hole "
                "ratios, 0 <= low < high <= 1"
            )
        if not 0 <= self.border <= 1:
            raise ValueError(
                f"invalid masks.border={self.border}: expected a share of the masks, 0 to 1"
            )
        if self.kind == "irregular" and self.border and self.high > (1 - 2 * BORDER) ** 2:
            raise ValueError(
                f"masks.high={self.high} does not fit inside the border constraint (at most "
                f"{(1 - 2 * BORDER) ** 2:.2f}): lower it, or set masks.border=0"
            )
        usual = {"center": 1, "square": 2}.get(self.kind, 0)
        if self.sides and (len(self.sides) != usual or min(self.sides) < 1):
            raise ValueError(
                f"masks.sides={list(self.sides)} does not fit masks.kind={self.kind}: expected one "
                "side for center, the shortest and the longest for square, [] for others"
            )
        if self.kind == "external" and self.url is None:
            raise ValueError(
                "masks.kind=external needs masks.url=, a set of masks (`masks out=DIR` makes one)"
            )
        if self.kind != "external" and self.url is not None:
            raise ValueError(
                f"masks.url={store.display(self.url)} needs masks.kind=external, not {self.kind}: "
                "give masks.kind=external, or leave masks.url= out"
            )

    def takes(self, bucket: str, ratio: float) -> bool:
        """Return whether a mask of the set is trained and validated on."""
        return bucket != FIXED and self.low < ratio <= self.high


def draw(
    policy: MaskPolicy, height: int, width: int, seed: int, epoch: int, key: int
) -> np.ndarray:
    """Draw the hole of sample `key` in `epoch`, uint8 height × width of {0, 1}."""
    words = (seed, epoch, key)
    if policy.kind == "irregular":
        constrained = (
            np.random.SeedSequence([*words, 1]).generate_state(1)[0] < policy.border * 2**32
        )
        border = border_width(height, width) if constrained else 0
        return irregular(height, width, policy.low, policy.high, border, words)
    if policy.kind == "square":
        return square(height, width, words, policy.sides)
    assert policy.kind == "center", "masks of kind external and none are not drawn"
    return center(height, width, *policy.sides)
