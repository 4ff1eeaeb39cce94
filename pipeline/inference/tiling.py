"""Fill large images with a network that accepts small ones: bounded memory, no visible seams.

A group of neighboring holes that fits into one tile is filled in one crop that includes its
surroundings. A larger group is covered by overlapping tiles, weighted down to zero toward their
edges. A tile that is mostly hole has too few known pixels; there, a fill of the whole image at
reduced size is used instead.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Device = torch.device | str
FillCrop = Callable[[Bytes, Bytes], Floats]  # `_fill_crop` with its network
MOSTLY_HOLE = 0.6  # networks are trained on holes of up to 60 % of the image


class Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def fill_any(
    fill: Fill,
    image: Bytes,
    mask: Bytes,
    tile: int = 512,
    overlap: int = 64,
    device: Device = "cpu",
) -> Bytes:
    """Fill the holes of an image; known pixels stay bit-identical.

    image: uint8 H×W×3; mask: uint8 H×W, 1 = hole. The network sees at most tile×tile pixels.
    """
    result = image.copy()
    if not mask.any():
        return result
    height, width = mask.shape
    fill_crop = partial(_fill_crop, fill, device)
    if max(height, width) <= tile:
        return _paste(result, fill_crop(image, mask), mask, Box(0, 0, height, width))
    coarse: Floats | None = None
    # Holes closer than twice the overlap form one group.
    dilated = cv2.dilate(mask, np.ones((2 * overlap + 1, 2 * overlap + 1), np.uint8))
    count, groups, stats, _ = cv2.connectedComponentsWithStats(dilated, connectivity=8)
    for group in range(1, count):
        box = _tight(mask, stats[group])
        if max(box.bottom - box.top, box.right - box.left) <= tile - 2 * overlap:
            crop = _around(box, tile, height, width)
            filled = fill_crop(image[crop.slices], mask[crop.slices])
        else:
            if coarse is None:
                coarse = _coarse(fill_crop, image, mask, tile)
            crop = box
            filled = _blend(fill_crop, image, mask, box, coarse, tile, overlap)
        _paste(result, filled, mask[crop.slices] * (groups[crop.slices] == group), crop)
    return result


def _tight(mask: Bytes, stats: NDArray[np.int32]) -> Box:
    """Return the box of the holes inside a component's box, a row of OpenCV's statistics."""
    left, top, width, height = (int(x) for x in stats[:4])
    x, y, w, h = cv2.boundingRect(mask[top : top + height, left : left + width])
    return Box(top + y, left + x, top + y + h, left + x + w)


def _around(box: Box, tile: int, height: int, width: int) -> Box:
    """Return a tile centered on the box but inside the image; smaller if the image is."""
    top = min(max(0, (box.top + box.bottom - tile) // 2), max(0, height - tile))
    left = min(max(0, (box.left + box.right - tile) // 2), max(0, width - tile))
    return Box(top, left, min(height, top + tile), min(width, left + tile))


def _coarse(fill_crop: FillCrop, image: Bytes, mask: Bytes, tile: int) -> Floats:
    """Fill the whole image, scaled down to fit the tile, and scale the result back up."""
    height, width = mask.shape
    scale = tile / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    holes = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    filled = fill_crop(small, holes.astype(np.uint8))
    filled = np.where(holes[..., None], filled, small.astype(np.float32))
    large = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def _blend(
    fill_crop: FillCrop,
    image: Bytes,
    mask: Bytes,
    box: Box,
    coarse: Floats,
    tile: int,
    overlap: int,
) -> Floats:
    """Blend overlapping tiles over the box; use `coarse` where tiles have too few known pixels."""
    height, width = mask.shape
    tops = _starts(box.top, box.bottom, height, tile, overlap)
    lefts = _starts(box.left, box.right, width, tile, overlap)
    tiled = Box(tops[0], lefts[0], min(height, tops[-1] + tile), min(width, lefts[-1] + tile))
    total = np.zeros((tiled.bottom - tiled.top, tiled.right - tiled.left, 4), np.float32)
    for top in tops:
        for left in lefts:
            crop = Box(top, left, min(height, top + tile), min(width, left + tile))
            holes = mask[crop.slices]
            if not holes.any() or holes.mean() > MOSTLY_HOLE:
                continue
            filled = fill_crop(image[crop.slices], holes)
            weight = np.outer(
                _ramp(crop.top, crop.bottom, height, overlap),
                _ramp(crop.left, crop.right, width, overlap),
            )[..., None].astype(np.float32)
            sums = total[_shift(crop, tiled).slices]
            sums[..., :3] += weight * filled
            sums[..., 3:] += weight
    total = total[_shift(box, tiled).slices]
    weight = total[..., 3:]
    confidence = np.minimum(weight, 1)
    blended = total[..., :3] / np.maximum(weight, 1) + (1 - confidence) * coarse[box.slices]
    return np.asarray(blended, np.float32)


def _starts(first: int, last: int, length: int, tile: int, overlap: int) -> list[int]:
    """Tile positions such that their full-weight parts cover [first, last)."""
    step = tile - overlap
    start = max(0, first - overlap)
    starts = [start]
    while starts[-1] + tile < min(length, last + overlap):
        starts.append(starts[-1] + step)
    return sorted({max(0, min(s, length - tile)) for s in starts})


def _ramp(start: int, end: int, length: int, overlap: int) -> Floats:
    """Weights: 1 inside, falling to 0 over `overlap` toward edges inside the image."""
    inside = np.arange(end - start) + 0.5
    rise = np.ones(end - start) if start == 0 else np.minimum(1, inside / overlap)
    fall = np.ones(end - start) if end == length else np.minimum(1, inside[::-1] / overlap)
    return (rise * fall).astype(np.float32)


def _shift(box: Box, origin: Box) -> Box:
    top, left = origin.top, origin.left
    return Box(box.top - top, box.left - left, box.bottom - top, box.right - left)


@torch.no_grad()
def _fill_crop(fill: Fill, device: Device, image: Bytes, mask: Bytes) -> Floats:
    """Run the network on one crop, its hole erased: float32 H×W×3 in [0, 255]."""
    known = np.where(mask[..., None] != 0, 0, image).astype(np.float32) / 255
    pixels = torch.from_numpy(known).permute(2, 0, 1)[None].contiguous().to(device)
    holes = torch.from_numpy(np.ascontiguousarray(mask != 0)).float()[None, None].to(device)
    filled = fill(pixels, holes)[0].clamp(0, 1).mul(255)
    return filled.permute(1, 2, 0).float().cpu().numpy()


def _paste(result: Bytes, filled: Floats, holes: Bytes, box: Box) -> Bytes:
    """Write the rounded fill into the holes of the result inside the box."""
    target = result[box.slices]
    target[holes != 0] = np.round(filled[holes != 0]).astype(np.uint8)
    return result
