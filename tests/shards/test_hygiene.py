"""Every bad input has its line: what it is, and what the policy makes of it."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms
from skimage import data as photographs

from shards.hygiene import Policy, describe, examine
from shards.pack import PackedSample, Reject

POLICY = Policy(min_side=32)
PHOTO = Image.fromarray(photographs.astronaut()[:96, :128])


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(PHOTO, "JPEG", quality=90, **options)


def turned(value: int = 3) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def oriented(value: int) -> bytes:
    return jpeg(exif=turned(value))


def noise(mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 320, 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), quality=90, **options)


def zeroed(data: bytes, place: float, count: int = 4096) -> bytes:
    """`data` with `count` zeroed bytes at the share `place`; the end marker is kept."""
    start = int((len(data) - 2 - count) * place)
    return data[:start] + bytes(count) + data[start + count :]


def struck(data: bytes, what: bytes) -> bytes:
    """`data` with other bytes in its middle."""
    start = len(data) // 2
    return data[:start] + what + data[start + len(what) :]


def with_size(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose frame header promises other sides than its scan holds."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def png_promising(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    frames = [PHOTO, Image.new("RGB", PHOTO.size, "red")]
    return encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )


def display_p3() -> bytes:
    """A profile of other primaries: littleCMS' sRGB with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    (a,), (b,) = (
        struct.unpack_from(">I", profile, red + 4),
        struct.unpack_from(">I", profile, green + 4),
    )
    profile[a : a + 20], profile[b : b + 20] = profile[b : b + 20], profile[a : a + 20]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "eRGB".encode("utf-16-be"))


REJECTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "empty"),
    "text": (lambda: b"<html>not found</html>", "format"),
    "PDF": (lambda: b"%PDF-1.7\n" + b"\0" * 100, "format"),
    "two bytes of a JPEG": (lambda: b"\xff\xd8", "format"),
    "a JPEG's first marker alone": (lambda: b"\xff\xd8\xff", "corrupt"),
    "a JPEG that ends in its header": (lambda: jpeg()[:100], "corrupt"),
    "a JPEG without a frame": (lambda: b"\xff\xd8\xff\xfe\0\4ab\xff\xda\0\2\xff\xd9", "corrupt"),
    "65000x65000 in a JPEG's header": (lambda: with_size(jpeg(), 65000, 65000), "pixels"),
    "30000x30000 in a PNG's header": (lambda: png_promising(30000, 30000), "pixels"),
    "12000x12000 in a PNG's header": (lambda: png_promising(12000, 12000), "pixels"),
    "no height": (lambda: with_size(jpeg(), 0, 128), "corrupt"),
    "1x1": (lambda: encoded(PHOTO.resize((1, 1))), "small"),
    "31 pixels of 32": (lambda: encoded(PHOTO.resize((64, 31))), "small"),
    "2000x8": (lambda: encoded(PHOTO.resize((2000, 8))), "aspect"),
    "a JPEG without its last three bytes": (lambda: jpeg()[:-3], "corrupt"),
    "a progressive JPEG without them": (lambda: jpeg(progressive=True)[:-3], "corrupt"),
    "a JPEG to be turned without them": (lambda: jpeg(exif=turned())[:-3], "corrupt"),
    "a CMYK JPEG without them": (lambda: noise("CMYK")[:-3], "corrupt"),
    "stray bytes between a JPEG's markers": (lambda: jpeg()[:2] + b"ab" + jpeg()[2:], "format"),
    # row 3: pixels are missing, which Pillow passes over
    "4 KB of zeros in a JPEG": (lambda: zeroed(noise(), 0.5), "corrupt"),
    "4 KB of zeros in a progressive JPEG": (
        lambda: zeroed(noise(progressive=True), 0.5),
        "corrupt",
    ),
    "zeros up to a JPEG's end marker": (lambda: zeroed(noise(), 1.0), "corrupt"),
    "zeros in a JPEG with restart markers": (
        lambda: zeroed(noise(restart_marker_blocks=8), 0.5),
        "corrupt",
    ),
    "zeros in a JPEG to be turned": (lambda: zeroed(noise(exif=turned()), 0.5), "corrupt"),
    "zeros in a CMYK JPEG": (lambda: zeroed(noise("CMYK"), 0.5), "corrupt"),
    "a JPEG with 4 KB less": (lambda: noise()[:9000] + noise()[13096:], "corrupt"),
    "a run of 0xFF in a JPEG's scan": (lambda: struck(noise(), b"\xff" * 300), "corrupt"),
    "an unknown marker in a scan": (lambda: struck(noise(), b"\xff\x5f"), "corrupt"),
    "a second image in a scan": (lambda: struck(noise(), b"\xff\xd8"), "corrupt"),
    "a broken table in a scan": (lambda: struck(noise(), b"\xff\xc4\0\7\0\xff\xff"), "corrupt"),
    "a broken table in a progressive JPEG": (
        lambda: struck(noise(progressive=True), b"\xff\xdb\0\3\5"),
        "corrupt",
    ),
    "half a JPEG": (lambda: jpeg()[: len(jpeg()) // 2], "corrupt"),
    "half a PNG": (lambda: encoded(PHOTO, "PNG")[:5000], "corrupt"),
    "half a WebP": (lambda: encoded(PHOTO, "WEBP")[:800], "corrupt"),
    "floating-point TIFF": (lambda: encoded(PHOTO.convert("F"), "TIFF"), "format"),
}


# Row 3
@pytest.mark.parametrize("what", REJECTED)
def test_what_cannot_be_trained_on_is_rejected_with_its_reason(what: str) -> None:
    make, reason = REJECTED[what]
    verdict = examine("a/b.jpg", make(), POLICY)
    assert isinstance(verdict, Reject), verdict
    assert (verdict.src, verdict.reason) == ("a/b.jpg", reason)
    assert verdict.detail and "\n" not in verdict.detail


UNTOUCHED: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "4:4:4": lambda: jpeg(subsampling=0),
    "progressive": lambda: jpeg(progressive=True),
    "gray": lambda: encoded(PHOTO.convert("L")),
    "upright by EXIF": lambda: oriented(1),
    "an sRGB profile": lambda: jpeg(
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "a comment": lambda: jpeg(comment=b"\xff\xd8\xff holiday"),
    "bytes after the end": lambda: jpeg() + b"\0" * 1000,
}


@pytest.mark.parametrize("what", UNTOUCHED)
def test_a_plain_jpeg_is_stored_byte_for_byte(what: str) -> None:
    given = UNTOUCHED[what]()
    verdict = examine("x.jpg", given, POLICY, label=7)
    assert isinstance(verdict, PackedSample), verdict
    assert verdict.data == given
    mode = "L" if what == "gray" else "RGB"
    assert dict(verdict.columns) == {
        "width": 128, "height": 96, "mode": mode, "orientation": 1, "label": 7,
    }  # fmt: skip


def stored(data: bytes, policy: Policy = POLICY) -> np.ndarray:
    """What a reader sees of a transcoded image: uint8 H×W×3."""
    verdict = examine("x", data, policy)
    assert isinstance(verdict, PackedSample), verdict
    assert verdict.data != data
    assert simplejpeg.is_jpeg(verdict.data)
    pixels = simplejpeg.decode_jpeg(verdict.data)
    assert pixels.shape[:2] == (verdict.columns["height"], verdict.columns["width"])
    assert describe(verdict.data)["orientation"] == verdict.columns["orientation"] == 1
    again = examine("x", verdict.data, policy)
    assert isinstance(again, PackedSample) and again.data == verdict.data
    return pixels


def near(pixels: np.ndarray, image: Image.Image, tolerance: float) -> bool:
    expected = np.asarray(image.convert("RGB"), np.int16)
    return pixels.shape == expected.shape and bool(
        np.abs(pixels.astype(np.int16) - expected).mean() <= tolerance
    )


def on(color: str) -> Image.Image:
    layer = Image.new("RGBA", (64, 64), (200, 40, 40, 255))
    layer.paste((0, 0, 0, 0), (0, 0, 64, 32))
    ground = Image.new("RGBA", (64, 64), color)
    ground.alpha_composite(layer)
    return ground


HALF = Image.new("RGBA", (64, 64), (200, 40, 40, 255))
HALF.paste((0, 0, 0, 0), (0, 0, 64, 32))


@pytest.mark.parametrize("value", range(2, 9))
def test_an_exif_rotation_is_baked_in(value: int) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[value]
    assert near(stored(oriented(value)), PHOTO.transpose(turn), 3)


def test_a_png_becomes_a_jpeg_of_the_same_image() -> None:
    assert near(stored(encoded(PHOTO, "PNG")), PHOTO, 3)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_become_jpegs(kind: str) -> None:
    assert near(stored(encoded(PHOTO, kind)), PHOTO, 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(kind: str) -> None:
    assert near(stored(animated(kind)), PHOTO, 12)


def test_alpha_is_laid_on_white() -> None:
    assert near(stored(encoded(HALF, "PNG")), on("white"), 2)
    assert near(stored(encoded(HALF, "WEBP", lossless=True)), on("white"), 2)


def test_a_palette_with_a_transparent_color_is_laid_on_white() -> None:
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0, 200, 40, 40])
    palette.paste(0, (0, 0, 64, 32))
    assert near(stored(encoded(palette, "PNG", transparency=0)), on("white"), 2)


def test_gray_with_alpha_is_laid_on_white() -> None:
    layer = Image.new("LA", (64, 64), (60, 255))
    layer.paste((0, 0), (0, 0, 64, 32))
    expected = Image.new("L", (64, 64), 60)
    expected.paste(255, (0, 0, 64, 32))
    assert near(stored(encoded(layer, "PNG")), expected, 2)


def test_a_palette_without_transparency_keeps_its_colors() -> None:
    palette = PHOTO.quantize(64)
    assert near(stored(encoded(palette, "PNG")), palette, 3)


def test_sixteen_bit_gray_keeps_its_upper_eight() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = stored(encoded(Image.fromarray(ramp), "PNG"))
    assert near(pixels, Image.fromarray((ramp >> 8).astype(np.uint8)), 1)


def test_one_bit_becomes_black_and_white() -> None:
    bits = PHOTO.convert("1")
    assert near(stored(encoded(bits, "PNG")), bits, 4)


def test_inks_become_rgb() -> None:
    inks = PHOTO.convert("CMYK")
    assert near(stored(encoded(inks, "JPEG", quality=95)), PHOTO, 4)


def test_another_profile_becomes_srgb() -> None:
    profile = display_p3()
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(PHOTO, source, target, outputMode="RGB")
    assert expected is not None and not near(np.asarray(PHOTO), expected, 5)
    assert near(stored(jpeg(icc_profile=profile)), expected, 3)


def test_a_broken_profile_is_ignored() -> None:
    assert near(stored(jpeg(icc_profile=b"no profile at all" * 20)), PHOTO, 3)


@pytest.mark.parametrize(
    ("odd", "warning"),
    [
        (jpeg()[:-2] + b"\x55\x12\x99" * 6 + b"\xff\xd9", "extraneous"),
        (jpeg().replace(b"\3\x11\0\x3f\0", b"\3\x11\0\0\0", 1), "Invalid SOS parameters"),
    ],
)
def test_a_jpeg_that_strict_readers_refuse_but_whose_pixels_are_whole_is_stored_anew(
    odd: bytes, warning: str
) -> None:
    with pytest.raises(ValueError, match=warning):
        simplejpeg.decode_jpeg(odd)
    assert near(stored(odd), PHOTO, 3)


def test_a_rejected_bomb_costs_no_memory() -> None:
    import tracemalloc

    bomb = with_size(jpeg(), 65000, 65000)
    tracemalloc.start()
    examine("x", bomb, POLICY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_long_short_side_is_reduced_to_the_stored_one(kind: str) -> None:
    pixels = stored(encoded(PHOTO, kind), Policy(store_short=48))
    assert near(pixels, PHOTO.resize((64, 48), Image.Resampling.BOX), 4)


def test_a_short_side_at_the_stored_one_stays_as_it_is() -> None:
    verdict = examine("x", jpeg(), Policy(store_short=96))
    assert isinstance(verdict, PackedSample) and verdict.data == jpeg()


def test_the_ratio_of_sides_survives_the_reduction() -> None:
    tall = encoded(PHOTO.resize((333, 1000)))
    assert stored(tall, Policy(store_short=100)).shape == (300, 100, 3)


def test_a_small_image_is_enlarged_where_the_policy_says_so() -> None:
    pixels = stored(jpeg(), Policy(min_side=192, small="upscale"))
    assert near(pixels, PHOTO.resize((256, 192), Image.Resampling.BICUBIC), 4)


def test_gray_stays_gray_when_it_is_reduced() -> None:
    verdict = examine("x", encoded(PHOTO.convert("L")), Policy(store_short=48))
    assert isinstance(verdict, PackedSample) and verdict.columns["mode"] == "L"
    assert simplejpeg.decode_jpeg_header(verdict.data)[2] == "Gray"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small": "drop"}, "small=drop: choose one of reject, upscale"),
        ({"quality": 0}, "data.quality=0: expected 1 to 100"),
        ({"min_side": 256, "store_short": 128}, "data.store_short=128 is below data.min_side=256"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**options)


# --- names and what is silent ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "été/日本.jpg", "img.v1.final.jpg", "two\nlines.jpg", "/abs.jpg"]
)
def test_a_name_is_data_and_stays_what_it_is(name: str) -> None:
    verdict = examine(name, jpeg(), POLICY)
    assert isinstance(verdict, PackedSample) and verdict.src == name


def test_nothing_is_said_of_odd_images_on_the_way() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for make, _ in REJECTED.values():
            examine("x", make(), POLICY)
        examine("x", encoded(PHOTO.quantize(16), "PNG", transparency=b"\x10\x20"), POLICY)
    assert [str(warning.message) for warning in said] == []
