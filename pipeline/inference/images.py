"""Read any user's image as RGB pixels, and write it with its alpha, profile and EXIF data.

Conversions on reading: EXIF orientation is applied; 16-bit images keep their upper 8 bits; gray and
palette images become RGB, and gray ones are written as gray; CMYK becomes sRGB by its profile, if
it has one. Other profiles are not applied but embedded again on writing, so that known pixels stay
bit-identical. Alpha is kept apart from the pixels. Only the first frame of an animation is read.
"""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from pipeline.config.values import SUFFIXES, suffix
from shards import store
from shards.mask_file import read_hole
from shards.metadata import open_image, turn_upright

MAX_PIXELS = 64_000_000
OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}


@dataclass(frozen=True)
class ImageFile:
    pixels: NDArray[np.uint8]  # H×W×3, RGB
    alpha: NDArray[np.uint8] | None = None  # H×W, 0 = transparent
    icc: bytes | None = None
    exif: bytes | None = None
    gray: bool = False

    def filled(self, pixels: NDArray[np.uint8]) -> "ImageFile":
        """Return the image with other pixels, gray if it is."""
        if self.gray:
            pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
        return replace(self, pixels=pixels)


def read_bytes(url: str) -> bytes:
    try:
        return store.read(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{store.display(url)}: no such image file") from error


def read(url: str) -> ImageFile:
    """Read the image at `url`. ValueError if it is missing, not an image, damaged or too large."""
    return decode(read_bytes(url), store.display(url))


def decode(data: bytes, name: str = "image") -> ImageFile:
    """Decode an image file's bytes; errors refer to it as `name`."""
    return _rgb(_opened(data, name))


def decode_mask(data: bytes, name: str) -> NDArray[np.bool_]:
    """Decode a mask's bytes to its hole, H×W, as `shards.mask_file` reads it."""
    image = _opened(data, name)
    try:
        return read_hole(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _opened(data: bytes, name: str) -> Image.Image:
    """The decoded image, upright."""
    try:
        with open_image(data) as file:
            if file.width * file.height <= MAX_PIXELS:
                return turn_upright(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as an image: give a PNG, JPEG or WebP") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error})") from error
    raise ValueError(
        f"{name} is {file.width}×{file.height}: images may have at most "
        f"{MAX_PIXELS // 1_000_000} megapixels; scale it down"
    )


def _rgb(image: Image.Image) -> ImageFile:
    icc, exif = image.info.get("icc_profile"), image.info.get("exif")
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    elif image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values >>= 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode == "CMYK":
        image, icc = _srgb(image, icc), None
    return ImageFile(np.asarray(image.convert("RGB")), alpha, icc, exif, gray)


def _srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc is None:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except ImageCms.PyCMSError:
        converted = None
    return converted or image.convert("RGB")


def encode(image: ImageFile, kind: str = "PNG") -> bytes:
    """Encode as PNG, JPEG (quality 95, no chroma subsampling) or WEBP (lossless)."""
    file = Image.fromarray(image.pixels)
    if image.alpha is not None:
        file.putalpha(Image.fromarray(image.alpha))
        if kind == "JPEG":  # on white, as `shard` does
            white = Image.new("RGBA", file.size, "white")
            file = Image.alpha_composite(white, file).convert("RGB")
    if image.gray and kind != "WEBP":
        file = file.convert("LA" if file.mode == "RGBA" else "L")
    unfit = image.gray and kind == "WEBP"  # a gray profile, WEBP has RGB alone
    metadata = {"icc_profile": None if unfit else image.icc, "exif": image.exif}
    buffer = io.BytesIO()
    file.save(buffer, kind, **OPTIONS[kind], **{k: v for k, v in metadata.items() if v})
    return buffer.getvalue()


def write(url: str, image: ImageFile) -> None:
    """Write the image to `url` atomically, in the format of its extension, one of SUFFIXES.

    ValueError if the format cannot hold the image.
    """
    try:
        data = encode(image, SUFFIXES[suffix(url)])
    except (OSError, ValueError) as error:
        raise ValueError(f"{store.display(url)} cannot be written: {error}") from error
    store.write(url, data)


def mask_image(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """White where the mask is 1: H×W or H×W×1 of 0 and 1 to uint8 H×W×3."""
    return np.repeat(mask.reshape(*mask.shape[:2], 1) * 255, 3, 2).astype(np.uint8)


def strip(*panels: NDArray[np.uint8], gap: int = 4) -> NDArray[np.uint8]:
    """Place panels of equal height (H×W×3 images, H×W masks) next to each other on white."""
    bar = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    row: list[NDArray[np.uint8]] = []
    for panel in panels:
        row += [bar, panel if panel.ndim == 3 else mask_image(panel)]
    return np.concatenate(row[1:], 1)
