"""Cut the photographs that ship with scikit-image into ordinary JPEG files.

Training, validation and test use different photographs; both views of the stereo pair are in one
split. Drawings, scans of text, masks and images under 256 pixels are excluded.
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
    """Load a photograph as RGB, by its file name in scikit-image."""
    with files("skimage").joinpath("data", name).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def crops(image: Image.Image) -> Iterator[Image.Image]:
    """Cut SIZE x SIZE crops, half overlapping, at full size (at most 768) and at 5/4 of SIZE."""

    def scaled(scale: float) -> Image.Image:
        return image.resize([round(s * scale) for s in image.size], Image.Resampling.LANCZOS)

    if max(image.size) > 768:
        image = scaled(768 / max(image.size))
    small = SIZE * 5 / 4 / min(image.size)
    for whole in [image, scaled(small)] if small < 0.9 else [image]:
        columns, rows = (_offsets(side) for side in whole.size)
        for top in rows:
            for left in columns:
                yield whole.crop((left, top, left + SIZE, top + SIZE))


def write_crops(folder: Path) -> dict[str, int]:
    """Write `folder/<split>/<photograph>-<n>.jpg`; return the number of crops of each split."""
    counts = dict.fromkeys(SPLITS, 0)
    for split, names in SPLITS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            for i, crop in enumerate(crops(photograph(name))):
                stem = name.partition(".")[0]
                crop.save(folder / split / f"{stem}-{i:03d}.jpg", quality=95, subsampling=0)
                counts[split] += 1
    return counts


def spoon() -> tuple[Image.Image, Image.Image]:
    """Return the held-out cup of coffee at an odd size, and a mask of the spoon on its saucer."""
    image = photograph("coffee.png").crop((0, 0, 597, 389))
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((316, 236, 416, 336), fill=255)
    draw.polygon([(368, 250), (402, 64), (428, 64), (394, 250)], fill=255)
    return image, mask


def _offsets(side: int) -> list[int]:
    steps = max(1, -(-(side - SIZE) // (SIZE // 2)))
    return sorted({round(i * (side - SIZE) / steps) for i in range(steps + 1)})
