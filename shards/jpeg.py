"""Read a JPEG's header and decode it by libjpeg; a file with missing pixels is an error.

libjpeg warns about odd data and continues. A warning about the coded data means that pixels are
missing; one about the markers, padding before the end marker, or its absence affects no pixels.
"""

import re
import struct
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

END = b"\xff\xd9"
_RGB = (0xC0, 0xC1, 0xC2)  # SOF markers: baseline, extended, progressive
# Warnings about a scan's header (jerror.h of libjpeg-turbo); others are about the coded data.
_HARMLESS = ("Inconsistent progression sequence", "Invalid SOS parameters")
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_JUNK = 64  # most ignored bytes before the end marker; more are a scan that was not decoded
_BUFFER = 8  # bytes that the decoder has buffered and does not count


def is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def decode(data: bytes, colors: str = "RGB", **options: Any) -> np.ndarray:
    """Decode to uint8 H×W×C; `options` are passed to simplejpeg.

    Raises ValueError when pixels are missing.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colors, **options))
    except ValueError as error:
        if str(error).startswith("Premature end of JPEG file") and data[-2:] != END:
            return decode(data + END, colors, **options)
        if _lacks_pixels(data, str(error)):
            raise
        return np.asarray(simplejpeg.decode_jpeg(data, colors, strict=False, **options))


def check(data: bytes, header: "Header") -> bool:
    """Return whether libjpeg decodes without a warning. Raises ValueError when pixels are missing.

    Decodes at 1/8 scale, which reads all data at an eighth of the cost.
    """
    colors = "CMYK" if header.components == 4 else "GRAY"
    fast = {"fastdct": True, "fastupsample": True, "min_height": 1, "min_width": 1}
    try:
        simplejpeg.decode_jpeg(data, colors, **fast)
    except ValueError:
        decode(data, colors, **fast)
        return False
    return True


def _lacks_pixels(data: bytes, warning: str) -> bool:
    """Return whether libjpeg's warning or error means that pixels are missing.

    Without `strict`, simplejpeg returns what it has after an error too, so only harmless ones pass.
    """
    if warning.startswith(_HARMLESS):
        return False
    found = _PADDING.search(warning)
    if found is None:
        return True
    count, scan = int(found[1]), data[: data.rindex(END)]
    padding = len(scan) - len(scan.rstrip(scan[-1:]))
    # If the run of equal bytes is longer, the decoder has taken a part of it for pixels.
    return padding - count >= _BUFFER or count > max(padding, _JUNK)


class Header(NamedTuple):
    width: int
    height: int
    components: int
    plain: bool  # 8 bits, gray or RGB, upright, sRGB: stored unchanged


def header(data: bytes) -> Header:
    """Read the markers up to the scan without decoding. Raises ValueError for an invalid JPEG."""
    place, frame, upright, srgb = 2, None, True, True
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise ValueError(f"invalid JPEG: no marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place + 4 : place + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(segment) < 6:
                break
            bits, height, width, components = struct.unpack_from(">BHHB", segment)
            frame = (width, height, components, bits, marker)
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0":
            upright = upright and _orientation(segment[6:]) in (0, 1)
        elif marker == 0xE2 and segment[:12] == b"ICC_PROFILE\0":
            srgb = srgb and b"sRGB" in segment.replace(b"\0", b"")
        place += 2 + length
    if frame is None:
        raise ValueError("invalid JPEG: no frame header")
    width, height, components, bits, marker = frame
    plain = bits == 8 and components in (1, 3) and marker in _RGB and upright and srgb
    return Header(width, height, components, plain)


def _orientation(tiff: bytes) -> int:
    """Return the EXIF orientation in a TIFF block, 0 if there is none."""
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
        pass  # a truncated EXIF block: no orientation
    return 0
