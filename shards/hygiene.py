"""Which pictures are stored, and how: every file of a source becomes a sample or a reject.

In this order: not empty, a format we know by its first bytes, a header that promises few enough
pixels (read before any decoder runs: a decoder believes 65000×65000 and takes 7 GB), sides, aspect,
a decode to the last bit of entropy-coded data. What every decoder reads alike (8-bit gray or RGB
JPEG, upright, sRGB) passes through untouched; anything else is decoded once, here, and stored as
such a JPEG, so that no reader has to know of EXIF, alpha, palettes, 16 bits, inks or profiles.
"""

import io
import struct
import warnings
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from shards.pack import PackedSample, Reject

SMALL = ("reject", "upscale")
_RGB_JPEG = (0xC0, 0xC1, 0xC2)  # SOF markers: baseline, extended, progressive
_OTHERS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG")


@dataclass(frozen=True, slots=True)
class Policy:
    """All that decides what is stored of a picture."""

    min_side: int = 0  # pixels; a shorter side is rejected, or enlarged to it
    small: str = "reject"
    max_pixels: int = 64_000_000
    max_aspect: float = 20.0
    store_short: int | None = None  # pixels; a longer short side is reduced to it
    quality: int = 95  # of the JPEG where one is made, 4:4:4

    def __post_init__(self) -> None:
        if self.small not in SMALL:
            raise ValueError(f"small={self.small} is none of {', '.join(SMALL)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"data.quality={self.quality} must be 1 to 100")
        if self.store_short is not None and self.store_short < max(self.min_side, 1):
            raise ValueError(
                f"data.store_short={self.store_short} is below data.min_side={self.min_side}; "
                "raise it, or lower min_side to the crop"
            )

    def options(self) -> dict[str, Any]:
        """As a plan records them."""
        return asdict(self)


def examine(src: str, data: bytes, policy: Policy, label: int = -1) -> PackedSample | Reject:
    """What becomes of the file `src` with the bytes `data`: never raises for what it holds."""
    if not data:
        return Reject(src, "empty", "no bytes")
    try:
        header = _jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
        plain = header is not None and header.plain
        picture = None if plain else _open(data)
        width, height = _size(header, picture)
        bad = _bad_shape(src, width, height, policy)
        if bad is not None:
            return bad
        short = _stored_short(width, height, policy)
        if plain and short is None and _decodes(data):
            mode = "L" if header is not None and header.components == 1 else "RGB"
            return _sample(src, data, width, height, mode, label)
        if plain and short is not None:
            pixels = _decode_jpeg(data, short)
        else:  # a JPEG that libjpeg has remarks on may still be whole: Pillow knows
            pixels = _upright(picture or _open(data))
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
    """Sides, mode and EXIF orientation of a picture that `examine` took, as it is stored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _open(data)
        orientation = picture.getexif().get(0x0112, 1)
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return {
        "width": picture.width,
        "height": picture.height,
        "mode": picture.mode,
        "orientation": orientation if valid else 1,
    }


def upright(data: bytes) -> np.ndarray:
    """The pixels that `examine` would store of a picture it took, uint8 H×W×3 RGB.

    Raises OSError, ValueError or SyntaxError when it cannot be decoded.
    """
    pixels = _upright(_open(data))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


# --- the header -----------------------------------------------------------------------------------


class _UnsupportedFormat(ValueError):
    """No picture, or one of a kind that is not taken."""


class _Header(NamedTuple):
    width: int
    height: int
    components: int
    plain: bool  # 8 bits, gray or RGB, upright, sRGB: stored as it is


def _jpeg_header(data: bytes) -> _Header:
    """Walks the markers up to the frame and the scan; the pixels are not touched."""
    place, frame, upright, srgb = 2, None, True, True
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise ValueError(f"no marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place + 4 : place + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", segment)
            frame = (width, height, components, bits, marker)
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0":
            upright = upright and _orientation(segment[6:]) in (0, 1)
        elif marker == 0xE2 and segment[:12] == b"ICC_PROFILE\0":
            srgb = srgb and b"sRGB" in segment.replace(b"\0", b"")
        place += 2 + length
    if frame is None:
        raise ValueError("no frame header")
    width, height, components, bits, marker = frame
    plain = bits == 8 and components in (1, 3) and marker in _RGB_JPEG and upright and srgb
    return _Header(width, height, components, plain)


def _orientation(tiff: bytes) -> int:
    """The EXIF orientation in a TIFF block, 0 when it has none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 0
    try:
        (place,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, place)
        for i in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, place + 2 + 12 * i)
            if tag == 0x0112:
                return int(value)
    except struct.error:
        pass  # a cut-off EXIF block turns nothing
    return 0


def _open(data: bytes) -> Image.Image:
    """Pillow's lazy reading of a header; no pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pixel limit is ours, EXIF's faults nobody's
            return Image.open(io.BytesIO(data), formats=_OTHERS)
    except UnidentifiedImageError as error:
        begin = data[:8].hex(" ")
        raise _UnsupportedFormat(
            f"no JPEG, PNG, WebP, GIF, BMP or TIFF (begins {begin})"
        ) from error


def _size(header: _Header | None, picture: Image.Image | None) -> tuple[int, int]:
    if header is not None:
        return header.width, header.height
    assert picture is not None
    return picture.size


def _bad_shape(src: str, width: int, height: int, policy: Policy) -> Reject | None:
    said = f"{width}x{height}"
    if width * height > policy.max_pixels:
        return Reject(src, "pixels", f"{said} in the header, at most {policy.max_pixels}")
    if min(width, height) < 1:
        return Reject(src, "corrupt", f"{said} in the header")
    if max(width, height) > policy.max_aspect * min(width, height):
        return Reject(src, "aspect", f"{said}, at most {policy.max_aspect:g} to 1")
    if min(width, height) < policy.min_side and policy.small == "reject":
        return Reject(src, "small", f"{said}, the shorter side at least {policy.min_side}")
    return None


def _stored_short(width: int, height: int, policy: Policy) -> int | None:
    """The short side to resize to, None to leave it."""
    short = min(width, height)
    if short < policy.min_side:
        return policy.min_side
    if policy.store_short is not None and short > policy.store_short:
        return policy.store_short
    return None


# --- the pixels -----------------------------------------------------------------------------------


def _decodes(data: bytes) -> bool:
    """Decodes at 1/8 scale: all of the coded data is read, an eighth of the transform is paid."""
    try:
        simplejpeg.decode_jpeg(
            data, colorspace="GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1
        )
    except ValueError:
        return False
    return True


def _decode_jpeg(data: bytes, short: int | None) -> np.ndarray:
    """uint8 H×W×1|3, reduced in the transform as far as `short` allows."""
    gray = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
    least = short or 0
    return simplejpeg.decode_jpeg(
        data, colorspace="GRAY" if gray else "RGB", min_height=least, min_width=least
    )


def _upright(picture: Image.Image) -> np.ndarray:
    """The first frame as uint8 H×W (gray) or H×W×3: turned, on white, 8 bits, sRGB."""
    profile = picture.info.get("icc_profile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.load()
    turned = ImageOps.exif_transpose(picture)
    if turned.mode in ("I", "I;16", "I;16B", "I;16L"):
        return (np.asarray(turned).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    if turned.mode == "F":
        raise _UnsupportedFormat("floating-point pixels have no agreed white")
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        turned = Image.new("RGBA", layer.size, "white")
        turned.alpha_composite(layer)
        turned = turned.convert("RGB")
    elif turned.mode not in ("L", "RGB", "CMYK"):
        turned = turned.convert("L" if turned.mode in ("1", "LA") else "RGB")
    if profile and turned.mode in ("RGB", "CMYK"):
        turned = _to_srgb(turned, profile)
    if turned.mode == "CMYK":
        turned = turned.convert("RGB")
    return np.asarray(turned)


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """`picture` in sRGB; a profile that is broken or of another colour space is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture
    except (ImageCms.PyCMSError, OSError):
        return picture


def _resize(pixels: np.ndarray, short: int) -> np.ndarray:
    """`pixels` with the short side `short`, sides rounded to the nearest."""
    height, width = pixels.shape[:2]
    scale = short / min(height, width)
    size = (max(short, round(width * scale)), max(short, round(height * scale)))
    if size == (width, height):
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
