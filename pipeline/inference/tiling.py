"""Large pictures through a network that takes small ones, in bounded memory and without seams.

Each group of holes is one crop where it fits a tile, its surroundings included. Where it does not,
tiles with overlap cover it, weighted down to nothing at their rims; a tile that is mostly hole
has too little to go by, so there the fill of the whole picture, made small, shows through.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Device = torch.device | str
MOSTLY_HOLE = 0.6  # networks are trained on holes of up to 60 % of the picture


class Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def of(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def fill_any(
    fill: Fill,
    image: Bytes,
    mask: Bytes,
    tile: int = 512,
    overlap: int = 64,
    device: Device = "cpu",
) -> Bytes:
    """The picture with its holes filled, known pixels bit for bit.

    image: uint8 H×W×3; mask: uint8 H×W, 1 = hole. The network sees at most tile×tile pixels.
    """
    if not 0 < 2 * overlap < tile:
        raise ValueError(f"overlap={overlap} of tile={tile}: give 0 < overlap < tile / 2")
    if not mask.any():
        return image.copy()
    result = image.copy()
    height, width = mask.shape
    if max(height, width) <= tile:
        return _paste(result, _ask(fill, image, mask, device), mask, Box(0, 0, height, width))
    coarse: Floats | None = None
    near = cv2.dilate(mask, np.ones((2 * overlap + 1, 2 * overlap + 1), np.uint8))
    count, groups, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    for group in range(1, count):
        box = _tight(mask, _box(stats[group]))
        if max(box.bottom - box.top, box.right - box.left) <= tile - 2 * overlap:
            crop = _around(box, tile, height, width)
            answer = _ask(fill, image[crop.of], mask[crop.of], device)
        else:
            if coarse is None:
                coarse = _coarse(fill, image, mask, tile, device)
            crop = box
            answer = _blend(fill, image, mask, box, coarse, tile, overlap, device)
        _paste(result, answer, mask[crop.of] * (groups[crop.of] == group), crop)
    return result


def _box(stats: NDArray[np.int32]) -> Box:
    """The box of one row of OpenCV's component statistics."""
    left, top, width, height = (int(x) for x in stats[:4])
    return Box(top, left, top + height, left + width)


def _tight(mask: Bytes, box: Box) -> Box:
    """The part of the box that the holes inside it span."""
    inside = mask[box.of]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left = box.top + int(rows[0]), box.left + int(columns[0])
    return Box(top, left, box.top + int(rows[-1]) + 1, box.left + int(columns[-1]) + 1)


def _around(box: Box, tile: int, height: int, width: int) -> Box:
    """The tile (or less, at small pictures) with the box in its middle, inside the picture."""
    top = min(max(0, (box.top + box.bottom - tile) // 2), max(0, height - tile))
    left = min(max(0, (box.left + box.right - tile) // 2), max(0, width - tile))
    return Box(top, left, min(height, top + tile), min(width, left + tile))


def _coarse(fill: Fill, image: Bytes, mask: Bytes, tile: int, device: Device) -> Floats:
    """The whole picture filled at a size that fits the tile, at full size again."""
    height, width = mask.shape
    scale = tile / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    holes = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    answer = _ask(fill, small, holes.astype(np.uint8), device)
    answer = np.where(holes[..., None], answer, small.astype(np.float32))
    large = cv2.resize(answer, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def _blend(
    fill: Fill,
    image: Bytes,
    mask: Bytes,
    box: Box,
    coarse: Floats,
    tile: int,
    overlap: int,
    device: Device,
) -> Floats:
    """Overlapping tiles over the box, in one weighted sum; `coarse` where no tile knows enough."""
    height, width = mask.shape
    total = np.zeros((box.bottom - box.top, box.right - box.left, 4), np.float32)
    for top in _starts(box.top, box.bottom, height, tile, overlap):
        for left in _starts(box.left, box.right, width, tile, overlap):
            crop = Box(top, left, min(height, top + tile), min(width, left + tile))
            holes = mask[crop.of]
            if not holes.any() or holes.mean() > MOSTLY_HOLE:
                continue
            answer = _ask(fill, image[crop.of], holes, device)
            weight = np.outer(
                _ramp(crop.top, crop.bottom, height, overlap),
                _ramp(crop.left, crop.right, width, overlap),
            )[..., None].astype(np.float32)
            both = Box(
                *(max(a, b) for a, b in zip(crop[:2], box[:2])), *map(min, crop[2:], box[2:])
            )
            if both.top >= both.bottom or both.left >= both.right:
                continue
            there = _shift(both, box).of
            here = _shift(both, crop).of
            total[there][..., :3] += (weight * answer)[here]
            total[there][..., 3:] += weight[here]
    weight = total[..., 3:]
    sure = np.minimum(weight, 1)
    blended = total[..., :3] / np.maximum(weight, 1) + (1 - sure) * coarse[box.of]
    return np.asarray(blended, np.float32)


def _starts(first: int, last: int, length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that [first, last) lies inside their full-weight parts."""
    step = tile - overlap
    start = max(0, first - overlap)
    starts = [start]
    while starts[-1] + tile < min(length, last + overlap):
        starts.append(starts[-1] + step)
    return sorted({max(0, min(s, length - tile)) for s in starts})


def _ramp(start: int, end: int, length: int, overlap: int) -> Floats:
    """1 inside, falling to 0 over `overlap` towards rims that are not the picture's own."""
    inside = np.arange(end - start) + 0.5
    rise = np.ones(end - start) if start == 0 else np.minimum(1, inside / overlap)
    fall = np.ones(end - start) if end == length else np.minimum(1, inside[::-1] / overlap)
    return (rise * fall).astype(np.float32)


def _shift(box: Box, origin: Box) -> Box:
    top, left = origin.top, origin.left
    return Box(box.top - top, box.left - left, box.bottom - top, box.right - left)


@torch.no_grad()
def _ask(fill: Fill, image: Bytes, mask: Bytes, device: Device) -> Floats:
    """The network's answer to one crop, float32 H×W×3 in [0, 255]; hidden pixels are erased."""
    known = np.where(mask[..., None] != 0, 0, image).astype(np.float32) / 255
    pixels = torch.from_numpy(known).permute(2, 0, 1)[None].contiguous().to(device)
    holes = torch.from_numpy(np.ascontiguousarray(mask != 0)).float()[None, None].to(device)
    answer = fill(pixels, holes)[0].clamp(0, 1).mul(255)
    return answer.permute(1, 2, 0).float().cpu().numpy()


def _paste(result: Bytes, answer: Floats, holes: Bytes, box: Box) -> Bytes:
    """Rounds the answer into the result's holes inside the box."""
    place = result[box.of]
    place[holes != 0] = np.round(answer[holes != 0]).astype(np.uint8)
    return result
