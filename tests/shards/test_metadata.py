"""Metadata is not the pixels: an image with broken EXIF or text is read as the one without."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.inference import images
from shards.decode import decode
from shards.hygiene import Policy, describe, examine, upright
from shards.metadata import open_image
from shards.pack import PackedSample, Reject
from tests.support.sets import smooth_image

PIXELS = smooth_image(1, 48, 64)
GARBAGE = b"garbagegarbage"
# Orientation 6, then a description whose type is no type of TIFF.
HALF = (
    b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\x01\x0e\xff\xff" * 3
)


def encoded(form: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form, **options)
    return file.getvalue()


def text(size: int, kind: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("Comment", "x" * size, zip=True)
    else:
        info.add_text("Comment", "x" * size, zip=kind == "zTXt")
    return info


def with_chunk(kind: bytes, body: bytes, damage: int = 0, last: bool = False) -> bytes:
    """A PNG with one more chunk, whose checksum is wrong by `damage`."""
    data = encoded("PNG")
    at = len(data) - 12 if last else 33
    crc = zlib.crc32(kind + body) ^ damage
    return data[:at] + struct.pack(">I4s", len(body), kind) + body + crc.to_bytes(4) + data[at:]


BOMB = b"Comment\0\0" + zlib.compress(bytes(80_000_000))
CASES = {
    "PNG, EXIF": (encoded("PNG", exif=GARBAGE), encoded("PNG")),
    "WebP, EXIF": (
        encoded("WEBP", lossless=True, exif=GARBAGE),
        encoded("WEBP", lossless=True),
    ),
    "CMYK JPEG, EXIF": (
        encoded("JPEG", "CMYK", exif=b"Exif\0\0" + GARBAGE),
        encoded("JPEG", "CMYK"),
    ),
    "PNG, zTXt of 3 MB": (encoded("PNG", pnginfo=text(3_000_000, "zTXt")), encoded("PNG")),
    "PNG, iTXt of 3 MB": (encoded("PNG", pnginfo=text(3_000_000, "iTXt")), encoded("PNG")),
    "PNG, zTXt of 80 MB": (with_chunk(b"zTXt", BOMB), encoded("PNG")),
    "PNG, zTXt of 80 MB after the pixels": (with_chunk(b"zTXt", BOMB, last=True), encoded("PNG")),
    "PNG, iCCP of 80 MB": (with_chunk(b"iCCP", BOMB), encoded("PNG")),
    "PNG, tEXt with a wrong checksum": (with_chunk(b"tEXt", b"a\0b", damage=1), encoded("PNG")),
}


def stored(data: bytes) -> bytes:
    sample = examine("a", data, Policy())
    assert isinstance(sample, PackedSample), sample
    return sample.data


# Row 14
@pytest.mark.parametrize("name", CASES)
def test_broken_metadata_changes_nothing_for_any_reader(name: str) -> None:
    data, plain = CASES[name]
    assert stored(data) == stored(plain)
    assert describe(data) == describe(plain) and describe(plain)["orientation"] == 1
    expected = upright(plain)
    assert np.array_equal(upright(data), expected)
    assert np.array_equal(decode(data), expected)
    assert np.array_equal(images.decode(data).pixels, images.decode(plain).pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_orientation_counts_though_other_exif_is_broken(form: str) -> None:
    data = encoded(form, exif=HALF, **({"lossless": True} if form == "WEBP" else {}))
    turned = np.rot90(PIXELS, -1)
    for pixels in (upright(data), decode(data), images.decode(data).pixels):
        assert np.array_equal(pixels, turned)
    assert describe(data)["orientation"] == 6


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt", "packed iTXt"])
def test_text_that_pillow_reads_is_kept(chunk: str) -> None:
    info = PngImagePlugin.PngInfo()
    if chunk.endswith("iTXt"):
        info.add_itxt("Comment", "x" * 1000, zip=chunk.startswith("packed"))
    else:
        info.add_text("Comment", "x" * 1000, zip=chunk == "zTXt")
    image = open_image(encoded("PNG", pnginfo=info))
    assert image.info["Comment"] == "x" * 1000


@pytest.mark.parametrize("left", [30, 100, 2000])
def test_a_png_that_is_cut_short_is_still_rejected(left: int) -> None:
    data = encoded("PNG")[:left]
    assert isinstance(examine("x.png", data, Policy()), Reject)
    with pytest.raises(ValueError, match="x.png cannot be read as an image"):
        images.decode(data, "x.png")


RAMP = PIXELS[..., 0].astype(np.uint16)
DEPTHS = {  # gray values, and as what they are read in 8 bits; None: rejected
    "16 bits": ("PNG", RAMP * 256 + 77, RAMP),
    "16 bits, TIFF": ("TIFF", RAMP * 256 + 77, RAMP),
    "16 bits, a dark image": ("PNG", RAMP, RAMP * 0),
    "32 bits, range 255": ("TIFF", RAMP.astype(np.int32), RAMP),
    "32 bits, range 65535": ("TIFF", RAMP.astype(np.int32) * 256, RAMP),
    "floating point, range 1": ("TIFF", RAMP.astype(np.float32) / 255, None),
    "floating point, range 255": ("TIFF", RAMP.astype(np.float32), None),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_sharding_and_predict_read_images_of_more_than_8_bits_alike(name: str) -> None:
    form, values, expected = DEPTHS[name]
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    data = file.getvalue()
    if expected is None:
        with pytest.raises(ValueError, match="x.tif: floating-point pixels.* save it with 8 or 16"):
            images.decode(data, "x.tif")
        verdict = examine("x.tif", data, Policy())
        assert isinstance(verdict, Reject) and "floating-point" in verdict.detail
    else:
        assert np.array_equal(upright(data)[..., 0], expected)
        read = images.decode(data)
        assert read.gray and np.array_equal(read.pixels[..., 0], expected)
