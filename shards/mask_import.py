"""Import mask images, such as NVIDIA's irregular masks, from a folder or archive into a mask set.

There are two conventions: the holes of NVIDIA's 12,000 test masks are white, those of its raw
training masks black. The hole ratios decide which one holds: read correctly, the ratios are within
the bucket that the folder's name gives (0.1-0.2, 10-20), else between 0.01 and 0.6; read wrongly, a
ratio of 0.05 becomes 0.95. If both readings fit, or neither, `polarity` must be given; one that the
ratios contradict is rejected.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from os import fsdecode
from pathlib import Path

import cv2
import numpy as np

from shards import store
from shards.decode import header
from shards.mask_file import read_hole
from shards.mask_sets import Mask
from shards.masks import BUCKETS, bucket
from shards.metadata import open_image
from shards.sources.files import File, images, list_files, read_file
from shards.sources.offer import say

POLARITIES = ("auto", "hole_white", "hole_black")
LOOK_AT = 600  # number of masks whose ratios are measured, evenly spread
# A convention is chosen if it puts a share FITS of the masks in range, and the other at most FAILS.
FITS, FAILS = 0.9, 0.7

_RANGE = re.compile(r"(\d*\.?\d+)\s*%?\s*(?:-|_|,|to)\s*(\d*\.?\d+)\s*%?")


@dataclass(frozen=True)
class MaskSource:
    """Mask images in a folder, tar or zip, in the order of their names."""

    root: Path
    archive: str
    files: tuple[File, ...]

    def read(self, place: int) -> np.ndarray:
        """Read the hole of the place-th image, bool H×W; ValueError names an image without one."""
        data = self._data(place)
        try:
            header(data)  # checks the pixel limit
            with open_image(data) as image:
                return read_hole(image)
        except (ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{self.name(place)}: not a mask image ({error})") from error

    def _data(self, place: int) -> bytes:
        return read_file(self.root, self.files[place].entry(self.archive))

    def name(self, place: int) -> str:
        return fsdecode(self.files[place].path)

    def digest(self) -> str:
        """Return the sha256 of all names and contents."""
        total = sha256()
        for place, file in enumerate(self.files):
            total.update(sha256(file.path + b"\0" + self._data(place)).digest())
        return total.hexdigest()


def open_source(source: str) -> MaskSource:
    """Return the mask images at `source`. Raises ValueError when there are none."""
    place = store.local(source).expanduser()
    files = tuple(sorted(images(list_files(place), say)))
    if not files:
        raise ValueError(
            f"source={source} has no images: give the folder or zip of masks as published "
            "(test_mask.zip: 12,000 PNG of 512x512, white holes)"
        )
    if place.is_dir():
        return MaskSource(place, "", files)
    return MaskSource(place.parent, place.name, files)


def resolve_polarity(source: MaskSource, polarity: str) -> str:
    """`hole_white` or `hole_black` by the hole ratios.

    Raises ValueError when the ratios do not decide, or contradict `polarity`.
    """
    if polarity not in POLARITIES:
        raise ValueError(f"invalid polarity={polarity}: choose one of {', '.join(POLARITIES)}")
    places = np.unique(np.linspace(0, len(source.files) - 1, LOOK_AT).astype(int))
    white = np.array([float(source.read(at).mean()) for at in places])
    bounds = [_bounds(source.files[at].path) for at in places]
    low, high = np.array([each[:2] for each in bounds]).T
    share = {
        "hole_white": float(((white > low) & (white <= high)).mean()),
        "hole_black": float(((1 - white > low) & (1 - white <= high)).mean()),
    }
    texts = [f"{name} puts {part:.0%} in range" for name, part in share.items()]
    texts += sorted({text for *_, text in bounds if text})[:12]
    shares = ", ".join(texts)
    fitting = next((n for n in share if share[n] >= FITS and min(share.values()) <= FAILS), "")
    if polarity == "auto" and not fitting:
        raise ValueError(
            f"the ratios of {len(places)} masks do not decide whether the hole is white or black "
            f"({shares}): look at a mask and set polarity=hole_white or polarity=hole_black"
        )
    if fitting and polarity not in ("auto", fitting):
        raise ValueError(
            f"polarity={polarity} contradicts the hole ratios of the masks ({shares}): "
            f"set polarity={fitting}"
        )
    return fitting if polarity == "auto" else polarity


def _bounds(path: bytes) -> tuple[float, float, str]:
    """Return the ratios (low, high] in the name of a mask's folder and what to say about them.

    Without a folder of such a name, those of all buckets.
    """
    for folder in reversed(fsdecode(path).split("/")[:-1]):
        if bounds := _RANGE.fullmatch(folder.strip("()[] ")):
            low, high = float(bounds[1]), float(bounds[2])
            scale = 100 if high > 1 else 1
            if low < high <= 100:  # not 2021-05
                text = f"folder {folder}/ means {low / scale:.0%} to {high / scale:.0%}"
                return low / scale - 0.005, high / scale + 0.005, text  # names are rounded
    return BUCKETS[0][0], BUCKETS[-1][1], ""


def import_masks(source: MaskSource, polarity: str, size: int) -> Iterator[Mask]:
    """Yield the masks at size × size with their bucket; without those outside all buckets.

    ValueError if all are outside. Resized by nearest neighbor, so that no hole grows; `polarity` as
    from `resolve_polarity`.
    """
    empty = True
    for place in range(len(source.files)):
        hole = (source.read(place) ^ (polarity == "hole_black")).astype(np.uint8)
        if hole.shape != (size, size):
            hole = np.asarray(cv2.resize(hole, (size, size), interpolation=cv2.INTER_NEAREST))
        name = bucket(float(hole.mean()))
        if name is not None:
            empty = False
            yield Mask(source.name(place), hole, name)
    if empty:
        raise ValueError(
            f"none of the {len(source.files)} masks has a hole ratio in (0.01, 0.6], read as "
            f"{polarity}: give other masks, or another polarity="
        )
