"""Check and normalize the images of a source: every file becomes a sample or a reject.

Checked in this order: not empty, a known format by its first bytes, the number of pixels in the
header (before decoding: a header of 65000×65000 would take 7 GB), sides, aspect, and that all of
the coded data decodes. A plain JPEG (8-bit gray or RGB, upright, sRGB), which all decoders read in
the same way, is stored unchanged. Other images are decoded here once and stored as such a JPEG, so
that readers need not handle EXIF, alpha, palettes, 16 bits, CMYK or color profiles.
"""

import struct
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards import jpeg
from shards.metadata import open_image, orientation, to_8_bits, to_srgb, turn_upright
from shards.pack import PackedSample, Reject

SMALL = ("reject", "upscale")
_OTHERS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG")


@dataclass(frozen=True, slots=True)
class Policy:
    """The options that determine which images are stored, and how."""

    min_side: int = 0  # pixels; a shorter side is rejected, or enlarged to it
    small: str = "reject"
    max_pixels: int = 64_000_000
    max_aspect: float = 20.0
    store_short: int | None = None  # pixels; a longer short side is reduced to it
    quality: int = 95  # of images encoded here, as JPEG 4:4:4

    def __post_init__(self) -> None:
        if self.small not in SMALL:
            raise ValueError(f"invalid small={self.small}: choose one of {', '.join(SMALL)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"invalid data.quality={self.quality}: expected 1 to 100")
        if self.store_short is not None and self.store_short < max(self.min_side, 1):
            raise ValueError(
                f"data.store_short={self.store_short} is below data.min_side={self.min_side}; "
                "raise it, or lower min_side to the crop"
            )

    def options(self) -> dict[str, Any]:
        """Return the options as recorded in a plan."""
        return asdict(self)


def examine(src: str, data: bytes, policy: Policy, label: int = -1) -> PackedSample | Reject:
    """Return the sample or reject for the file `src` with the bytes `data`."""
    if not data:
        return Reject(src, "empty", "no bytes")
    try:
        header = jpeg.header(data) if jpeg.is_jpeg(data) else None
        opened = header if header is not None and header.plain else _open(data)
        width, height = opened.width, opened.height
        bad = _bad_shape(src, width, height, policy)
        if bad is not None:
            return bad
        short = _stored_short(width, height, policy)
        flawless = header is not None and jpeg.check(data, header)
        gray = header is not None and header.components == 1
        if isinstance(opened, Image.Image):
            pixels = _upright(opened)
        elif flawless and short is None:
            return _sample(src, data, width, height, "L" if gray else "RGB", label)
        else:
            colors, least = "GRAY" if gray else "RGB", short or 0
            pixels = jpeg.decode(data, colors, min_height=least, min_width=least)
        if short is not None:
            pixels = _resize(pixels, short)
    except _UnsupportedFormat as error:
        return Reject(src, "format", str(error))
    except (Image.DecompressionBombError, MemoryError) as error:
        return Reject(src, "pixels", str(error))
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, cv2.error) as error:
        return Reject(src, "corrupt", f"{type(error).__name__}: {error}"[:200])
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1)),
        quality=policy.quality,
        colorspace="GRAY" if gray else "RGB",
        colorsubsampling="Gray" if gray else "444",
    )
    return _sample(src, encoded, pixels.shape[1], pixels.shape[0], "L" if gray else "RGB", label)


def _sample(src: str, data: bytes, width: int, height: int, mode: str, label: int) -> PackedSample:
    columns = {
        "width": width,
        "height": height,
        "mode": mode,
        "orientation": 1,
        "label": label if label >= 0 else None,
    }
    return PackedSample(src, data, "jpg", columns)


def describe(data: bytes) -> dict[str, Any]:
    """Return sides, mode and EXIF orientation of an image that `examine` accepted, as stored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data)
        return {
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "orientation": orientation(image),
        }


def upright(data: bytes) -> np.ndarray:
    """Decode an image that `examine` accepted to the pixels it would store, uint8 H×W×3 RGB.

    Raises OSError, ValueError or SyntaxError when it cannot be decoded.
    """
    pixels = _upright(_open(data))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


# --- the header -----------------------------------------------------------------------------------


class _UnsupportedFormat(ValueError):
    """Not an image, or an image of an unsupported kind."""


def _open(data: bytes) -> Image.Image:
    """Open by Pillow, which reads the header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # we check the pixel limit; bad EXIF does not matter
            # Pillow takes a JPEG without its end marker for a torn one; `jpeg.check` knows better.
            return open_image(data + jpeg.END * jpeg.is_jpeg(data), _OTHERS)
    except UnidentifiedImageError as error:
        begin = data[:8].hex(" ")
        raise _UnsupportedFormat(
            f"not a JPEG, PNG, WebP, GIF, BMP or TIFF (begins {begin})"
        ) from error


def _bad_shape(src: str, width: int, height: int, policy: Policy) -> Reject | None:
    size = f"{width}x{height}"
    if width * height > policy.max_pixels:
        return Reject(src, "pixels", f"{size} in the header; at most {policy.max_pixels} pixels")
    if min(width, height) < 1:
        return Reject(src, "corrupt", f"{size} in the header")
    if max(width, height) > policy.max_aspect * min(width, height):
        return Reject(src, "aspect", f"{size}; sides may differ by {policy.max_aspect:g} to 1")
    if min(width, height) < policy.min_side and policy.small == "reject":
        return Reject(src, "small", f"{size}; the shorter side must be at least {policy.min_side}")
    return None


def _stored_short(width: int, height: int, policy: Policy) -> int | None:
    """Return the short side to resize to; None for no resizing."""
    short = min(width, height)
    if short < policy.min_side:
        return policy.min_side
    if policy.store_short is not None and short > policy.store_short:
        return policy.store_short
    return None


# --- the pixels -----------------------------------------------------------------------------------


def _upright(image: Image.Image) -> np.ndarray:
    """Return the first frame as uint8 H×W (gray) or H×W×3: upright, on white, 8 bits, sRGB."""
    profile = image.info.get("icc_profile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = turn_upright(image)
    try:
        turned = to_8_bits(turned)
    except ValueError as error:
        raise _UnsupportedFormat(str(error)) from error
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        turned = Image.new("RGBA", layer.size, "white")
        turned.alpha_composite(layer)
        turned = turned.convert("RGB")
    elif turned.mode not in ("L", "RGB", "CMYK"):
        turned = turned.convert("L" if turned.mode in ("1", "LA") else "RGB")
    if profile and turned.mode in ("RGB", "CMYK"):
        turned = to_srgb(turned, profile)
    if turned.mode == "CMYK":
        turned = turned.convert("RGB")
    return np.asarray(turned)


def _resize(pixels: np.ndarray, short: int) -> np.ndarray:
    """Resize to the short side `short`; sides are rounded to the nearest pixel."""
    height, width = pixels.shape[:2]
    scale = short / min(height, width)
    size = (max(short, round(width * scale)), max(short, round(height * scale)))
    if size == (width, height):
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
