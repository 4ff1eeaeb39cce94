"""One image, whichever way it is read: indexed in tars or sharded, trained on or evaluated."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageOps
from skimage import data as photographs

from pipeline.evaluation.pairs import make_pairs
from shards import external
from shards.decode import Crop
from shards.hygiene import Policy, examine
from shards.manifest import Manifest, open_manifest
from shards.masks import MaskPolicy
from shards.pack import PackedSample
from shards.stream import Stream, examples
from shards.writer import write_set

PHOTO = Image.fromarray(photographs.astronaut()[:128, :192])
SIDE = 128  # of the crop; with an aspect of 3:2, a turned image gives another one


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(PHOTO, quality=95, **options)


def oriented(value: int, kind: str = "JPEG", image: Image.Image = PHOTO) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, kind, exif=exif, quality=95)


def before_the_end(data: bytes, junk: bytes) -> bytes:
    return data[:-2] + junk + data[-2:]


IMAGES: dict[str, Callable[[], bytes]] = {
    # row 4: libjpeg remarks on these, and no pixel is missing
    "five zeros before the end marker": lambda: before_the_end(jpeg(), bytes(5)),
    "2,000 bytes of padding there": lambda: before_the_end(jpeg(progressive=True), bytes(2000)),
    "18 bytes of junk there": lambda: before_the_end(jpeg(), b"\x55\x12\x99" * 6),
    "padding there, then a trailer": lambda: before_the_end(jpeg(), bytes(99)) + bytes(9),
    "no end marker": lambda: jpeg()[:-2],
    "half of an end marker": lambda: jpeg(progressive=True)[:-1],
    "no end marker of a gray JPEG": lambda: encoded(PHOTO.convert("L"), quality=95)[:-2],
    "no end marker of one to be turned": lambda: oriented(6)[:-2],
    "no end marker of CMYK": lambda: encoded(PHOTO.convert("CMYK"), quality=95)[:-2],
    # row 5: what a set of folders turns and converts
    "EXIF orientation 3": lambda: oriented(3),
    "EXIF orientation 6 of a gray JPEG": lambda: oriented(6, image=PHOTO.convert("L")),
    "EXIF orientation 8 of a PNG": lambda: oriented(8, "PNG"),
    "EXIF orientation 2 with padding": lambda: before_the_end(oriented(2), bytes(50)),
    "CMYK": lambda: encoded(PHOTO.convert("CMYK"), quality=95),
    "another color profile": lambda: jpeg(icc_profile=swapped()),
    "alpha": lambda: encoded(cornered(), "WEBP", lossless=True),
}


def cornered() -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 100, 100))
    return image


def swapped() -> bytes:
    """The profile of a device that exchanges red and green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = (int.from_bytes(profile[at + 4 : at + 8]) for at in
                  (profile.index(b"rXYZ"), profile.index(b"gXYZ")))  # fmt: skip
    profile[red : red + 20], profile[green : green + 20] = (
        profile[green : green + 20],
        profile[red : red + 20],
    )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "eRGB".encode("utf-16-be"))


def by_pillow(data: bytes) -> np.ndarray:
    """What a viewer shows: upright, on white, in sRGB."""
    image = Image.open(io.BytesIO(data + b"\xff\xd9"))  # Pillow rejects a JPEG without an end
    profile, image = image.info.get("icc_profile"), ImageOps.exif_transpose(image)
    if profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def center(pixels: np.ndarray) -> np.ndarray:
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE]


def indexed(data: bytes, folder: Path) -> Manifest:
    ext = "jpg" if simplejpeg.is_jpeg(data) else Image.open(io.BytesIO(data)).format.lower()
    with tarfile.open(folder / "0.tar", "w") as tar:
        info = tarfile.TarInfo(f"0.{ext}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return external.write(str(folder / "out"), "t", str(folder / "0.tar"), lambda _: None).manifest


def sharded(data: bytes, folder: Path, policy: Policy | None = None) -> Manifest:
    sample = examine("0", data, policy or Policy())
    assert isinstance(sample, PackedSample), sample
    write_set(str(folder), "t", "images", {"train": [sample]}, options={}, per_shard=1)
    return open_manifest(str(folder))


def trained_on(manifest: Manifest, crop: Crop) -> np.ndarray:
    masks = MaskPolicy("none")
    with Stream(manifest, "train", batch=1, seed=0, crop=crop, masks=masks, threads=0) as stream:
        return next(stream).images[0].numpy()


def near(left: np.ndarray, right: np.ndarray, tolerance: float = 4.0) -> bool:
    assert left.shape == right.shape
    return bool(np.abs(left.astype(float) - right).mean() < tolerance)


# Rows 4 and 5
@pytest.mark.parametrize("what", IMAGES)
def test_training_validation_evaluation_and_sharding_see_the_image_that_a_viewer_shows(
    what: str, tmp_path: Path
) -> None:
    data = IMAGES[what]()
    shown = by_pillow(data)
    crop = Crop(SIDE, "center")
    for number, make in enumerate((indexed, sharded)):
        (folder := tmp_path / str(number)).mkdir()
        manifest = make(data, folder)
        pairs = make_pairs(manifest, "train", None, ["center"], SIDE)
        ((_, whole),) = examples(manifest, "train")
        ((_, cropped),) = examples(manifest, "train", crop=crop)
        assert near(whole, shown), make
        assert near(cropped, center(shown)), make
        assert near(trained_on(manifest, crop), center(shown)), make
        assert near(pairs.load(0, 1).images[0].numpy(), center(shown)), make
    ((_, small),) = examples(sharded(data, tmp_path / "small", Policy(store_short=64)), "train")
    reduced = Image.fromarray(shown).resize(small.shape[1::-1], Image.Resampling.BOX)
    assert min(small.shape[:2]) == 64 and near(small, np.asarray(reduced), 6.0)


def test_a_viewer_shows_the_swapped_colors() -> None:
    """The oracle of the table distinguishes what its rows are about."""
    assert not near(by_pillow(jpeg(icc_profile=swapped())), np.asarray(PHOTO), 5)
    assert not near(center(by_pillow(oriented(3))), center(np.asarray(PHOTO)), 20)
