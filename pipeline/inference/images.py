"""Pictures of people: any mode, orientation and profile in; RGB bytes to work on; the same out.

What is converted, and how: EXIF orientation is applied; 16 bits become the upper 8; grey and
palette become RGB; CMYK becomes sRGB by its profile if it has one. An RGB profile is kept and
embedded again rather than applied, so that known pixels stay bit for bit. Alpha is kept beside the
pixels. Only the first frame of an animation is read.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from shards import store

MAX_PIXELS = 64_000_000
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
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


def suffix(url: str) -> str:
    """`.png` of `a/b.PNG`; empty without one."""
    name = store.name(url)
    return f".{name.rsplit('.', 1)[1].lower()}" if "." in name else ""


def read(url: str) -> ImageFile:
    """The picture at `url`. ValueError in one line when it is none, torn, or too large."""
    try:
        return decode(store.read(url), store.display(url))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{store.display(url)}: no such picture") from error


def decode(data: bytes, name: str = "picture") -> ImageFile:
    """The picture in `data`; `name` is what an error calls it."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(
                    f"{name} is {file.width}×{file.height}; at most {MAX_PIXELS // 1_000_000} "
                    "megapixels are taken"
                )
            image = ImageOps.exif_transpose(file)
            return _rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as a picture: give a PNG, JPEG or WebP") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({error})") from error


def _rgb(image: Image.Image) -> ImageFile:
    icc, exif = image.info.get("icc_profile"), image.info.get("exif")
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    elif image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or grey.max(initial=0) > 255:
            grey >>= 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    elif image.mode == "CMYK":
        image, icc = _srgb(image, icc), None
    if image.mode in ("L", "LA", "1") and icc:
        icc = None  # a grey profile does not fit RGB pixels
    return ImageFile(np.asarray(image.convert("RGB")), alpha, icc, exif)


def _srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc is None:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        wanted = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, wanted, outputMode="RGB")
    except ImageCms.PyCMSError:
        converted = None
    return converted or image.convert("RGB")


def encode(picture: ImageFile, kind: str = "PNG") -> bytes:
    """Bytes of the picture as PNG, JPEG (quality 95, full colour) or WEBP (lossless)."""
    image = Image.fromarray(picture.pixels)
    if picture.alpha is not None and kind != "JPEG":
        image.putalpha(Image.fromarray(picture.alpha))
    buffer = io.BytesIO()
    extra = {"icc_profile": picture.icc, "exif": picture.exif}
    extra = {name: value for name, value in extra.items() if value}
    image.save(buffer, kind, **OPTIONS[kind], **extra)
    return buffer.getvalue()


def write(url: str, picture: ImageFile) -> None:
    """Publish the picture at `url`, atomically, in the format that its name says."""
    if suffix(url) not in SUFFIXES:
        raise ValueError(
            f"{store.display(url)}: a picture is written as one of {', '.join(SUFFIXES)}"
        )
    store.write(url, encode(picture, SUFFIXES[suffix(url)]))


def strip(*panels: NDArray[np.uint8], gap: int = 4) -> NDArray[np.uint8]:
    """Panels of one height (H×W×3, or H×W masks of 0 and 1) side by side on white."""
    bar = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    row: list[NDArray[np.uint8]] = []
    for panel in panels:
        coloured = panel if panel.ndim == 3 else np.repeat(panel[..., None] * 255, 3, 2)
        row += [bar, coloured.astype(np.uint8)]
    return np.concatenate(row[1:], 1)
