"""Fill large images with a network that accepts small ones: bounded memory, no visible seams.

Holes that fit into one tile together are filled in one crop that includes their surroundings. If
such crops would have more pixels than the image, or a hole is larger, overlapping tiles cover all
holes, weighted down to zero toward their edges. A tile that is mostly hole has too few known
pixels; there, a fill of the whole image at reduced size is used instead.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Device = torch.device | str
FillCrop = Callable[[Bytes, Bytes], Floats]  # `_fill_crop` with its network
CELL = 32  # pixels; holes in the same cell or in neighboring ones are filled together
MOSTLY_HOLE = 0.6  # networks are trained on holes of up to 60 % of the image


class Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def side(self) -> int:
        return max(self.bottom - self.top, self.right - self.left)

    def joined(self, other: "Box") -> "Box":
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))


def fill_any(
    fill: Fill,
    image: Bytes,
    mask: Bytes,
    tile: int = 512,
    overlap: int = 64,
    device: Device = "cpu",
) -> Bytes:
    """Fill the holes of an image; known pixels stay bit-identical.

    image: uint8 H×W×3; mask: uint8 H×W, 1 = hole. The network sees at most tile×tile pixels at a
    time; with the default overlap, at most 1.4 times the image's pixels besides the reduced one.
    """
    result = image.copy()
    if not mask.any():
        return result
    height, width = mask.shape
    fill_crop = partial(_fill_crop, fill, device)
    coarse = cache(partial(_coarse, fill_crop, image, mask, tile))
    boxes, owners = _clusters(mask, tile, overlap)
    for number, box in enumerate(boxes, 1):
        rows = _spans(box.top, box.bottom, height, tile, overlap)
        columns = _spans(box.left, box.right, width, tile, overlap)
        first, last = columns[0][0], columns[-1][1]
        # Weighted colors and weights of one row of tiles, and of the next where they overlap.
        sums = np.zeros((rows[0][1] - rows[0][0], last - first, 4), np.float32)
        for (top, bottom), (after, _) in zip(rows, [*rows[1:], (rows[-1][1], 0)]):
            for left, right in columns:
                crop = Box(top, left, bottom, right)
                _add(sums[:, left - first : right - first], fill_crop, image, mask, crop, overlap)
            done = Box(top, first, after, last)
            cells = np.ix_(np.arange(top, after) // CELL, np.arange(first, last) // CELL)
            holes = (mask[done.slices] != 0) & (owners[cells] == number)
            _paste(result, sums[: after - top], holes, done, coarse)
            begun = sums[after - top :].copy()
            sums[: len(begun)] = begun
            sums[len(begun) :] = 0
    return result


def _clusters(mask: Bytes, tile: int, overlap: int) -> tuple[list[Box], NDArray[np.int32]]:
    """Return boxes of holes to fill together; for each cell the number of its box, from 1, or 0.

    One box with all holes if there is a larger hole than fits into a tile with its surroundings, or
    if tiles around the boxes would have more pixels than the image.
    """
    height, width = mask.shape
    largest = tile - 2 * overlap
    cells = np.maximum.reduceat(mask, range(0, height, CELL), axis=0)
    cells = np.maximum.reduceat(cells, range(0, width, CELL), axis=1)
    count, groups, stats, _ = cv2.connectedComponentsWithStats(cells, connectivity=8)
    boxes: list[Box] = []
    owners = np.zeros(count, np.int32)
    for group in range(1, count):
        left, top, w, h = (int(x) * CELL for x in stats[group, :4])
        x, y, w, h = cv2.boundingRect(mask[top : top + h, left : left + w])
        box = Box(top + y, left + x, top + y + h, left + x + w)
        number = next((i for i, b in enumerate(boxes) if box.joined(b).side <= largest), None)
        if number is None:
            number = len(boxes)
            boxes.append(box)
        boxes[number] = box.joined(boxes[number])
        owners[group] = number + 1
        pixels = len(boxes) * min(tile, height) * min(tile, width)
        if box.side > largest or pixels > mask.size:
            x, y, w, h = cv2.boundingRect(mask)
            return [Box(y, x, y + h, x + w)], np.ones(cells.shape, np.int32)
    return boxes, owners[groups]


def _spans(first: int, last: int, length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Equal spans of at most `tile` that overlap, over [first, last) and its surroundings."""
    needed = min(length, last - first + 2 * overlap)
    count = max(1, math.ceil((needed - overlap) / (tile - overlap)))
    total = min(length, count * (tile - overlap) + overlap)
    start = min(max(0, (first + last - total) // 2), length - total)
    side = math.ceil((total + (count - 1) * overlap) / count)
    starts = [start + i * (total - side) // max(1, count - 1) for i in range(count)]
    return [(s, s + side) for s in starts]


def _add(
    sums: Floats, fill_crop: FillCrop, image: Bytes, mask: Bytes, crop: Box, overlap: int
) -> None:
    """Add the weighted fill of one crop, and its weights; nothing if it is mostly hole."""
    holes = mask[crop.slices]
    if holes.any() and holes.mean() <= MOSTLY_HOLE:
        weight = np.outer(
            _ramp(crop.top, crop.bottom, mask.shape[0], overlap),
            _ramp(crop.left, crop.right, mask.shape[1], overlap),
        )[..., None]
        sums[..., :3] += weight * fill_crop(image[crop.slices], holes)
        sums[..., 3:] += weight


def _ramp(start: int, end: int, length: int, overlap: int) -> Floats:
    """Weights: 1 inside, falling to 0 over `overlap` toward edges inside the image."""
    inside = np.arange(end - start) + 0.5
    rise = np.ones(end - start) if start == 0 else np.minimum(1, inside / overlap)
    fall = np.ones(end - start) if end == length else np.minimum(1, inside[::-1] / overlap)
    return (rise * fall).astype(np.float32)


def _paste(
    result: Bytes,
    sums: Floats,
    holes: NDArray[np.bool_],
    box: Box,
    coarse: Callable[[], Image.Image],
) -> None:
    """Write the blended tiles into the holes of the result inside the box.

    Where tiles had too few known pixels, the fill at reduced size takes the rest of the weight.
    """
    colors, weight = np.split(sums[holes], [3], 1)
    colors /= np.maximum(weight, 1)
    if (weight < 0.999).any():
        small, (height, width) = coarse(), result.shape[:2]
        left, right = (x * small.width / width for x in (box.left, box.right))
        top, bottom = (y * small.height / height for y in (box.top, box.bottom))
        size = box.right - box.left, box.bottom - box.top
        large = np.asarray(
            small.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))
        )
        colors += np.maximum(1 - weight, 0) * large[holes]
    result[box.slices][holes] = np.round(colors)


def _coarse(fill_crop: FillCrop, image: Bytes, mask: Bytes, tile: int) -> Image.Image:
    """Fill the whole image, scaled down to fit the tile."""
    height, width = mask.shape
    scale = min(1, tile / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    shares = cv2.resize(mask * np.uint16(65535), size, interpolation=cv2.INTER_AREA)
    holes = (shares > 0).astype(np.uint8)
    filled = np.where(holes[..., None], np.round(fill_crop(small, holes)), small)
    return Image.fromarray(filled.astype(np.uint8))


@torch.no_grad()
def _fill_crop(fill: Fill, device: Device, image: Bytes, mask: Bytes) -> Floats:
    """Run the network on one crop, its hole erased: float32 H×W×3 in [0, 255]."""
    known = np.where(mask[..., None] != 0, 0, image).astype(np.float32) / 255
    pixels = torch.from_numpy(known).permute(2, 0, 1)[None].contiguous().to(device)
    holes = torch.from_numpy(np.ascontiguousarray(mask != 0)).float()[None, None].to(device)
    filled = fill(pixels, holes)[0].clamp(0, 1).mul(255)
    return filled.permute(1, 2, 0).float().cpu().numpy()
