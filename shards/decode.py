"""From a sample's bytes to a crop in batch memory, the same crop for the same (seed, epoch, key).

JPEG goes through simplejpeg, bit-identical to Pillow; for images that are shrunk anyway, libjpeg
decodes at the next larger of its scales. Other formats, which occur only in external sets, are
decoded as `hygiene` does when sharding. Sizes are read from the header before any decoder runs.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from shards import jpeg
from shards.hygiene import upright
from shards.metadata import open_image
from shards.order import mix

MAX_PIXELS = 64_000_000  # an image with more is rejected before it is decoded
RATIO = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015, as in torchvision)

_WRONG_SIZE = "its size differs from its index; shard the set again"

cv2.setNumThreads(1)  # the stream has its own threads; OpenCV's would compete with them


@dataclass(frozen=True)
class Crop:
    """How a stored image is cropped to size × size pixels.

    `random` and `center` crop the image, after resizing its short side to `resize_short` if that
    is given; `resized` resizes a box of a share `scale` of the area and of aspect 3:4 to 4:3.
    `flip` mirrors half of the samples.
    """

    size: int
    mode: Literal["random", "center", "resized"] = "random"
    resize_short: int | None = None
    flip: bool = False
    scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"invalid crop size={self.size}: expected at least 1 pixel")
        if self.mode not in ("random", "center", "resized"):
            raise ValueError(
                f"invalid crop mode={self.mode!r}: choose one of random, center, resized"
            )
        if self.mode == "resized" and self.resize_short is not None:
            raise ValueError("crop mode=resized takes no resize_short: remove it")
        if self.resize_short is not None and self.resize_short < self.size:
            raise ValueError(
                f"resize_short={self.resize_short} is smaller than the crop of {self.size}: "
                "make it at least as large"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"invalid crop scale={self.scale}: expected 0 < low <= high <= 1")

    @cached_property
    def unchanged(self) -> tuple[int, int] | None:
        """The (height, width) of images that the crop never changes; None if there is none."""
        changes = self.mode == "resized" or self.flip or self.resize_short not in (None, self.size)
        return None if changes else (self.size, self.size)


class Cut(NamedTuple):
    """Resize the image to rows × columns (0: no resizing), take the box, resize it to the crop."""

    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    flip: bool


def plan(crop: Crop, height: int, width: int, word: int) -> Cut:
    """Choose the crop of a height × width image by its 64 random bits, `word`.

    Raises ValueError when the image is smaller than the crop and is not resized.
    """
    flip = crop.flip and bool(mix(word, 0) & 1)
    if crop.mode == "resized":
        return Cut(0, 0, *_resized_box(crop, height, width, word), flip)
    rows, columns = height, width
    if crop.resize_short is not None:
        short = min(height, width)
        rows = max(crop.resize_short, round(height * crop.resize_short / short))
        columns = max(crop.resize_short, round(width * crop.resize_short / short))
    size = crop.size
    if min(rows, columns) < size:
        raise ValueError(
            f"the image of {width}x{height} pixels is smaller than the crop of {size}: "
            "set resize_short, or shard with a minimum side"
        )
    if crop.mode == "center":
        top, left = (rows - size) // 2, (columns - size) // 2
    else:
        top = _below(word, 1, rows - size + 1) if rows > size else 0
        left = _below(word, 2, columns - size + 1) if columns > size else 0
    resized = (rows, columns) != (height, width)
    return Cut(rows * resized, columns * resized, top, left, size, size, flip)


def _resized_box(crop: Crop, height: int, width: int, word: int) -> tuple[int, int, int, int]:
    low, high = crop.scale
    for trial in range(10):
        area = height * width * (low + (high - low) * _unit(word, 4 * trial + 3))
        spread = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = math.exp(spread[0] + (spread[1] - spread[0]) * _unit(word, 4 * trial + 4))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top = _below(word, 4 * trial + 5, height - tall + 1)
            return top, _below(word, 4 * trial + 6, width - wide + 1), tall, wide
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _unit(word: int, draw: int) -> float:
    return mix(word, draw) / 2**64


def _below(word: int, draw: int, count: int) -> int:
    return (mix(word, draw) * count) >> 64


class Scratch:
    """One thread's reusable memory for whole images; fresh pages cost as much as a small decode."""

    def __init__(self) -> None:
        self._bytes = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def take(self, place: int, count: int) -> np.ndarray:
        if self._bytes[place].size < count:
            self._bytes[place] = np.empty(count, np.uint8)
        return self._bytes[place]


def header(data: bytes) -> tuple[int, int, bool]:
    """Return (height, width, is it an upright gray or RGB JPEG); ValueError if unreadable."""
    if jpeg.is_jpeg(data):
        width, height, _, plain = jpeg.header(data)
    else:
        try:
            with open_image(data) as image:
                (width, height), plain = image.size, False
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"not a readable image ({error})") from error
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels; at most {MAX_PIXELS} are allowed")
    return height, width, plain


def decode(data: bytes) -> np.ndarray:
    """Decode the whole image, uint8 H×W×3 RGB. Raises ValueError when it cannot be decoded."""
    return jpeg.decode(data) if header(data)[2] else _upright(data)


def _upright(data: bytes) -> np.ndarray:
    try:
        return upright(data)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded ({error})") from error


def decode_crop(
    data: bytes,
    crop: Crop,
    word: int,
    out: np.ndarray,
    scratch: Scratch,
    shape: tuple[int, int] | None = None,
) -> None:
    """Decode, crop and mirror into `out`, uint8 size×size×3, contiguous, RGB.

    `word` is the sample's 64 random bits, `mix(seed, epoch, key)`; `shape` the (height, width) of
    an upright gray or RGB JPEG, None to read from the header what it is. Raises ValueError.
    """
    image = None
    if shape is not None:
        height, width = shape
    else:
        height, width, plain = header(data)
        if not plain:
            image = _upright(data)
            height, width = image.shape[:2]
    if image is None and (height, width) == crop.unchanged:
        _exactly(data, out)
        return
    cut = plan(crop, height, width, word)
    size = crop.size
    if image is None and height == width == size and cut == (0, 0, 0, 0, size, size, False):
        _exactly(data, out)
        return
    if image is None:
        rows, columns = _smallest_decode(cut, height, width, size)
        buffer = scratch.take(0, height * width * 3)
        image = jpeg.decode(data, min_height=rows, min_width=columns, buffer=buffer)
        if image.shape[0] < rows or image.shape[1] < columns:
            raise ValueError(_WRONG_SIZE)
    box = _box(image, cut, height, width, scratch)
    if box.shape[:2] == (size, size):
        if cut.flip:
            cv2.flip(box, 1, dst=out)
        else:
            np.copyto(out, box)
    else:
        if cut.flip:
            box = cv2.flip(box, 1)
        _resize(box, out)


def _exactly(data: bytes, out: np.ndarray) -> None:
    if jpeg.decode(data, buffer=out).shape != out.shape:
        raise ValueError(_WRONG_SIZE)


def _smallest_decode(cut: Cut, height: int, width: int, size: int) -> tuple[int, int]:
    """Return the smallest rows × columns to decode such that the box is at least the crop."""
    if cut.rows:
        return min(height, cut.rows), min(width, cut.columns)
    rows, columns = height * size / cut.height, width * size / cut.width
    return min(height, math.ceil(rows)), min(width, math.ceil(columns))


def _box(image: np.ndarray, cut: Cut, height: int, width: int, scratch: Scratch) -> np.ndarray:
    top, left, bottom, right = cut.top, cut.left, cut.top + cut.height, cut.left + cut.width
    if cut.rows:
        if image.shape[:2] != (cut.rows, cut.columns):
            buffer = scratch.take(1, cut.rows * cut.columns * 3)[: cut.rows * cut.columns * 3]
            resized = buffer.reshape(cut.rows, cut.columns, 3)
            _resize(image, resized)
            image = resized
    elif image.shape[:2] != (height, width):  # decoded smaller: the box shrinks with it
        down, across = image.shape[0] / height, image.shape[1] / width
        top, bottom = round(top * down), max(round(top * down) + 1, round(bottom * down))
        left, right = round(left * across), max(round(left * across) + 1, round(right * across))
    return image[top:bottom, left:right]


def _resize(image: np.ndarray, out: np.ndarray) -> None:
    """Resize into `out`: by area when shrinking to half or less, else bilinear (7 times cheaper).

    libjpeg has already reduced a JPEG to less than twice the size of `out`.
    """
    halves = image.shape[0] >= 2 * out.shape[0] and image.shape[1] >= 2 * out.shape[1]
    method = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
    cv2.resize(image, (out.shape[1], out.shape[0]), dst=out, interpolation=method)
