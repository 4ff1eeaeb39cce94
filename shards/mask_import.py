"""NVIDIA's irregular masks, or anybody's folder or archive of mask pictures, into a mask set.

Two conventions are about: NVIDIA's 12,000 test masks are white where the hole is, its raw training
masks black. Nothing is guessed from names: the ratios decide. Read the right way, masks lie in
their folder's bucket if its name gives one (0.1-0.2, 10-20), else between 0.01 and 0.6; read the
wrong way, a hole of 0.05 becomes one of 0.95. Where neither reading or both fit, `polarity` must
be given, and one that the ratios speak against is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from os import fsdecode
from pathlib import Path

import cv2
import numpy as np

from shards.decode import header
from shards.mask_sets import Mask
from shards.masks import BUCKETS, bucket
from shards.plan import Row
from shards.sources.files import File, is_image, list_files, read_file

POLARITIES = ("auto", "hole_white", "hole_black")
THRESHOLD = 127  # masks that went through JPEG leak grey around their edges
LOOK_AT = 600  # masks that the polarity is judged on, evenly spread
FITS, FAILS = 0.9, 0.7  # shares in range that decide for a reading, and against the other

_RANGE = re.compile(r"(\d*\.?\d+)\s*%?\s*(?:-|_|,|to)\s*(\d*\.?\d+)\s*%?")


@dataclass(frozen=True)
class MaskSource:
    """Mask pictures in a folder, tar or zip, in order of their names."""

    root: Path
    archive: str
    files: tuple[File, ...]

    def read(self, place: int) -> np.ndarray:
        """The place-th picture, grey uint8 H×W. ValueError names one that cannot be read."""
        file = self.files[place]
        row = Row(place, file.path, file.size, -1, self.archive, file.offset)
        data = read_file(self.root, row)
        try:
            header(data)  # the pixel limit, before OpenCV decodes whatever it is given
            grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        except (ValueError, cv2.error) as error:
            raise ValueError(f"{self.name(place)}: no mask picture ({error})") from error
        if grey is None:
            raise ValueError(f"{self.name(place)}: no mask picture")
        return grey

    def name(self, place: int) -> str:
        return fsdecode(self.files[place].path)

    def digest(self) -> str:
        """Of all names and contents."""
        total = sha256()
        for place, file in enumerate(self.files):
            row = Row(place, file.path, file.size, -1, self.archive, file.offset)
            total.update(sha256(file.path + b"\0" + read_file(self.root, row)).digest())
        return total.hexdigest()


def open_source(source: str) -> MaskSource:
    """The mask pictures at `source`. Raises ValueError when there are none."""
    place = Path(source)
    found = sorted(
        (file for file in list_files(place) if is_image(file.path)), key=lambda f: f.path
    )
    if not found:
        raise ValueError(
            f"{source}: no pictures there; give the folder or zip of masks as published "
            "(test_mask.zip: 12,000 PNG of 512x512, white holes)"
        )
    if place.is_dir():
        return MaskSource(place, "", tuple(found))
    return MaskSource(place.parent, place.name, tuple(found))


def resolve_polarity(source: MaskSource, polarity: str) -> str:
    """`hole_white` or `hole_black`: what the ratios say, checked against `polarity`.

    Raises ValueError when they leave it open, or contradict it.
    """
    if polarity not in POLARITIES:
        raise ValueError(f"polarity={polarity} is none of {', '.join(POLARITIES)}")
    places = np.unique(np.linspace(0, len(source.files) - 1, LOOK_AT).astype(int))
    white = np.array([float((source.read(at) > THRESHOLD).mean()) for at in places])
    low, high = np.array([_bounds(source.files[at].path) for at in places]).T
    share = {
        "hole_white": float(((white > low) & (white <= high)).mean()),
        "hole_black": float(((1 - white > low) & (1 - white <= high)).mean()),
    }
    said = ", ".join(f"{name} puts {part:.0%} in range" for name, part in share.items())
    if polarity == "auto":
        for name, other in (("hole_white", "hole_black"), ("hole_black", "hole_white")):
            if share[name] >= FITS and share[other] <= FAILS:
                return name
        raise ValueError(
            f"{len(places)} masks looked at, and their ratios do not tell which colour is the "
            f"hole ({said}): look at one and set polarity=hole_white or polarity=hole_black"
        )
    other = "hole_black" if polarity == "hole_white" else "hole_white"
    if share[other] >= FITS and share[polarity] <= FAILS:
        raise ValueError(
            f"polarity={polarity} is contradicted by the masks' ratios ({said}): "
            f"set polarity={other}"
        )
    return polarity


def _bounds(path: bytes) -> tuple[float, float]:
    """The ratios (low, high] that a mask's folder promises, else those of all buckets."""
    for folder in reversed(fsdecode(path).split("/")[:-1]):
        if found := _RANGE.fullmatch(folder.strip("()[] ")):
            low, high = float(found[1]), float(found[2])
            scale = 100 if high > 1 else 1
            return low / scale - 0.005, high / scale + 0.005  # folders are named after rounding
    return BUCKETS[0][0], BUCKETS[-1][1]


def import_masks(source: MaskSource, polarity: str, size: int) -> Iterator[Mask]:
    """The masks at size × size, bucketed by the ratio they have there; others are left out.

    Resized by nearest neighbour, so that no hole grows; `polarity` as `judge` gave it.
    """
    for place in range(len(source.files)):
        white = source.read(place) > THRESHOLD
        hole = (white ^ (polarity == "hole_black")).astype(np.uint8)
        if hole.shape != (size, size):
            hole = np.asarray(cv2.resize(hole, (size, size), interpolation=cv2.INTER_NEAREST))
        name = bucket(float(hole.mean()))
        if name is not None:
            yield Mask(source.name(place), hole, name)
