"""From a sample's bytes to a crop in batch memory, the same crop for the same (seed, epoch, key).

JPEG goes through simplejpeg, bit-identical to Pillow; at sizes that are shrunk anyway it decodes
in the DCT at the next larger of libjpeg's scales. What other people's sets hold beside plain JPEG
goes through the hygiene of sharding. Sizes come from the header before any decoder runs.
"""

import io
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from shards.hygiene import upright
from shards.order import mix

MAX_PIXELS = 64_000_000  # a header that claims more is refused before it costs memory
RATIO = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015, as torchvision has it)

_JPEG = b"\xff\xd8"
_ANOTHER = "not of the size that its index says; shard the set again"

cv2.setNumThreads(1)  # the stream's threads are the parallelism; OpenCV's would fight them


@dataclass(frozen=True)
class Crop:
    """How a stored picture becomes size × size pixels.

    `random` and `center` cut out of the picture, first resized to `resize_short` on its short
    side if that is given; `resized` takes a box of `scale` of the area, of aspect 3:4 to 4:3, and
    resizes it. `flip` mirrors every other sample.
    """

    size: int
    mode: Literal["random", "center", "resized"] = "random"
    resize_short: int | None = None
    flip: bool = False
    scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"crop size={self.size} is not allowed: at least 1 pixel")
        if self.mode not in ("random", "center", "resized"):
            raise ValueError(f"crop mode={self.mode!r} is none of random, center, resized")
        if self.mode == "resized" and self.resize_short is not None:
            raise ValueError("crop mode=resized resizes by itself: leave resize_short out")
        if self.resize_short is not None and self.resize_short < self.size:
            raise ValueError(
                f"resize_short={self.resize_short} is smaller than the crop of {self.size}: "
                "make it at least as large"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale={self.scale} is not allowed: 0 < low <= high <= 1")

    @cached_property
    def kept(self) -> tuple[int, int] | None:
        """The (height, width) of a picture that always stays as it is; None if there is none."""
        cuts = self.mode == "resized" or self.flip or self.resize_short not in (None, self.size)
        return None if cuts else (self.size, self.size)


class Cut(NamedTuple):
    """Resize the picture to rows × columns (0: as it is), take the box, resize it to the crop."""

    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    flip: bool


def plan(crop: Crop, height: int, width: int, word: int) -> Cut:
    """Where the crop of a height × width picture lies, `word` being its 64 random bits.

    Raises ValueError when the picture is smaller than the crop and nothing makes it larger.
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
            f"{width}x{height} pixels are smaller than the crop of {size}: "
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
    """One thread's memory for whole pictures, reused: fresh pages cost like a small decode."""

    def __init__(self) -> None:
        self._bytes = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def take(self, place: int, count: int) -> np.ndarray:
        if self._bytes[place].size < count:
            self._bytes[place] = np.empty(count, np.uint8)
        return self._bytes[place]


def header(data: bytes) -> tuple[int, int, bool]:
    """(height, width, whether simplejpeg reads it), nothing decoded. ValueError if unreadable."""
    if data[:2] == _JPEG:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        jpeg = colours in ("YCbCr", "RGB", "Gray")
    else:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                (width, height), jpeg = picture.size, False
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"no picture that can be read ({error})") from error
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than the {MAX_PIXELS} that are allowed")
    return height, width, jpeg


def decode(data: bytes, plain: bool = True) -> np.ndarray:
    """The whole picture, uint8 H×W×3 RGB. Raises ValueError when it cannot be decoded.

    `plain` says that a JPEG is upright, gray or RGB: ours are, the index knows of others'.
    """
    jpeg = header(data)[2]
    return simplejpeg.decode_jpeg(data, "RGB") if jpeg and plain else _upright(data)


def _upright(data: bytes) -> np.ndarray:
    header(data)
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
    plain: bool = True,
    shape: tuple[int, int] | None = None,
) -> None:
    """Decodes, cuts and mirrors straight into `out`, uint8 size×size×3, contiguous, RGB.

    `word` is the sample's 64 random bits, `mix(seed, epoch, key)`; `plain` as in `decode`;
    `shape` the (height, width) that an index has from the header, else that is read.
    Raises ValueError.
    """
    picture = None
    if plain and shape is not None and data[:2] == _JPEG:
        if shape == crop.kept:
            _exactly(data, out)
            return
        height, width = shape
    else:
        height, width, jpeg = header(data)
        if not (jpeg and plain):
            picture = _upright(data)
            height, width = picture.shape[:2]
    cut = plan(crop, height, width, word)
    size = crop.size
    whole = height == width == size and cut == (0, 0, 0, 0, size, size, False)
    if picture is None and whole:
        _exactly(data, out)
        return
    if picture is None:
        rows, columns = _smallest_decode(cut, height, width, size)
        room = scratch.take(0, height * width * 3)
        picture = simplejpeg.decode_jpeg(
            data, "RGB", min_height=rows, min_width=columns, buffer=room
        )
        if picture.shape[0] < rows or picture.shape[1] < columns:
            raise ValueError(_ANOTHER)
    box = _box(picture, cut, height, width, scratch)
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
    if simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape != out.shape:
        raise ValueError(_ANOTHER)


def _smallest_decode(cut: Cut, height: int, width: int, size: int) -> tuple[int, int]:
    """How small the decoder may make the picture: every pixel of the crop keeps one of the box."""
    if cut.rows:
        return min(height, cut.rows), min(width, cut.columns)
    rows, columns = height * size / cut.height, width * size / cut.width
    return min(height, math.ceil(rows)), min(width, math.ceil(columns))


def _box(picture: np.ndarray, cut: Cut, height: int, width: int, scratch: Scratch) -> np.ndarray:
    top, left, bottom, right = cut.top, cut.left, cut.top + cut.height, cut.left + cut.width
    if cut.rows:
        if picture.shape[:2] != (cut.rows, cut.columns):
            room = scratch.take(1, cut.rows * cut.columns * 3)[: cut.rows * cut.columns * 3]
            resized = room.reshape(cut.rows, cut.columns, 3)
            _resize(picture, resized)
            picture = resized
    elif picture.shape[:2] != (height, width):  # decoded smaller: the box shrinks with it
        down, across = picture.shape[0] / height, picture.shape[1] / width
        top, bottom = round(top * down), max(round(top * down) + 1, round(bottom * down))
        left, right = round(left * across), max(round(left * across) + 1, round(right * across))
    return picture[top:bottom, left:right]


def _resize(picture: np.ndarray, out: np.ndarray) -> None:
    """Into `out`: by area where it shrinks to half or less, bilinear otherwise (7 times cheaper).

    A JPEG comes here already shrunk by libjpeg to less than twice what is wanted.
    """
    halves = picture.shape[0] >= 2 * out.shape[0] and picture.shape[1] >= 2 * out.shape[1]
    way = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
    cv2.resize(picture, (out.shape[1], out.shape[0]), dst=out, interpolation=way)
