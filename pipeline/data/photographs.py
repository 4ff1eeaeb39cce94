"""Real photographs that ship inside scikit-image's wheel, cut into ordinary JPEG files.

Training, validation and test photographs are different photographs; the two views of the stereo
pair are one. Left out: drawings, scans of text, masks and pictures under 256 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 256
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "val": ("camera.png", "moon.png"),
    "test": ("chelsea.png", "coffee.png"),
}


def photograph(name: str) -> Image.Image:
    """One photograph, RGB, by its file name in the wheel."""
    with files("skimage").joinpath("data", name).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def crops(picture: Image.Image) -> Iterator[Image.Image]:
    """SIZE x SIZE crops on a grid of half steps, at full size (at most 768) and at 5/4 of SIZE."""
    smooth = Image.Resampling.LANCZOS
    shrink = min(1.0, 768 / max(picture.size))
    if shrink < 1:
        picture = picture.resize(
            [round(s * shrink) for s in picture.size], Image.Resampling.LANCZOS
        )
    small = SIZE * 5 / 4 / min(picture.size)
    scaled = [picture]
    if small < 0.9:
        scaled.append(picture.resize([round(s * small) for s in picture.size], smooth))
    for one in scaled:
        columns, rows = (_places(side) for side in one.size)
        for top in rows:
            for left in columns:
                yield one.crop((left, top, left + SIZE, top + SIZE))


def write_crops(folder: Path) -> dict[str, int]:
    """`folder/<split>/<photograph>-<n>.jpg`; how many crops each split has."""
    counts = {}
    for split, names in SPLITS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        counts[split] = 0
        for name in names:
            for i, crop in enumerate(crops(photograph(name))):
                stem = name.partition(".")[0]
                crop.save(folder / split / f"{stem}-{i:03d}.jpg", quality=95, subsampling=0)
                counts[split] += 1
    return counts


def spoon() -> tuple[Image.Image, Image.Image]:
    """The held-out cup of coffee at an odd size, and a mask over the spoon on its saucer."""
    picture = photograph("coffee.png").crop((0, 0, 597, 389))
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((316, 236, 416, 336), fill=255)
    draw.polygon([(368, 250), (402, 64), (428, 64), (394, 250)], fill=255)
    return picture, mask


def _places(side: int) -> list[int]:
    steps = max(1, -(-(side - SIZE) // (SIZE // 2)))
    return sorted({round(i * (side - SIZE) / steps) for i in range(steps + 1)})
