"""Open any image with Pillow: turned upright, in 8 bits, despite broken metadata."""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import MAX_TEXT_CHUNK

_TURNS = (0, 3, 1, 5, 4, 6, 2)  # of Image.Transpose, for the orientations 2 to 8
_PNG = b"\x89PNG\r\n\x1a\n"
# What precedes the zlib stream in a chunk that has one.
_PACKED = re.compile(rb"(?:zTXt|iCCP)[^\0]*\0\0|iTXt[^\0]*\0\x01\0[^\0]*\0[^\0]*\0")


def open_image(data: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image, reading its header only. Raises as `Image.open`."""
    if data.startswith(_PNG):
        data = _PNG + b"".join(_valid_chunks(memoryview(data)))
    return Image.open(io.BytesIO(data), formats=formats)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 without valid EXIF."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises errors of many types for broken EXIF
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(image: Image.Image) -> Image.Image:
    """Decode the image and turn it by its EXIF orientation."""
    image.load()
    turn = orientation(image)
    if turn == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # other EXIF values are broken: drop them all
        turned = image.transpose(Image.Transpose(_TURNS[turn - 2]))
        turned.info.pop("exif", None)
        return turned


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB; a broken profile, or one of another color space, is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image


def to_8_bits(image: Image.Image) -> Image.Image:
    """Convert a gray image of 16- or 32-bit integers; others are returned unchanged.

    The range is 255 or 65535, the smallest that holds all values. ValueError for floating point.
    """
    if image.mode == "F":
        raise ValueError(
            "floating-point pixels, whose range is unknown: save it with 8 or 16 bits per channel"
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if image.mode != "I" or values.max(initial=0) > 255:
        values >>= 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _valid_chunks(data: memoryview) -> Iterator[memoryview]:
    """Yield the chunks of a PNG without metadata for which Pillow would reject the whole image."""
    place = len(_PNG)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4])
        chunk = data[place : place + 12 + length]
        if bytes(chunk[4:5]).isupper() or _is_valid(chunk):
            yield chunk
        place += 12 + length


def _is_valid(chunk: memoryview) -> bool:
    """Return whether an optional chunk matches its checksum and inflates to a moderate size."""
    inflater = zlib.decompressobj()
    if packed := _PACKED.match(chunk[4:-4]):
        with contextlib.suppress(zlib.error):  # Pillow ignores such a chunk
            inflater.decompress(chunk[4 + packed.end() : -4], MAX_TEXT_CHUNK)
    fits = not inflater.unconsumed_tail
    return fits and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
