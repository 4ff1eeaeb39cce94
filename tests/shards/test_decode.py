import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.decode import Crop, Scratch, decode, decode_crop, header, plan
from shards.order import mix
from tests.support.sets import jpeg, smooth_image


def crop_of(data, crop, word=0):
    out = np.zeros((crop.size, crop.size, 3), np.uint8)
    decode_crop(data, crop, word, out, Scratch())
    return out


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def encoded(pixels, form, **options):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_pixels_are_those_of_pillow(subsampling, progressive):
    pixels = smooth_image(1, 67, 93)
    data = encoded(pixels, "JPEG", subsampling=subsampling, progressive=progressive)
    assert (decode(data) == by_pillow(data)).all()


def test_celebas_center_crop_is_rows_29_to_284_of_314():
    """At short side 256 an aligned face of 178x218 has round(313.5) rows."""
    ramp = np.repeat(np.linspace(0, 255, 218).round().astype(np.uint8)[:, None, None], 178, 1)
    data = encoded(np.repeat(ramp, 3, 2), "PNG")
    cut = plan(Crop(256, "center", 256), 218, 178, 0)
    assert (cut.rows, cut.columns, cut.top, cut.left) == (314, 256, 29, 0)
    found = crop_of(data, Crop(256, "center", 256))[:, 128, 0].astype(float)
    whole = np.interp(np.arange(314), (np.arange(218) + 0.5) * 314 / 218 - 0.5, ramp[:, 0, 0])
    assert np.abs(found - whole[29:285]).max() < 1.5  # a row is 0.8 of a gray level


def test_gray_jpeg_gives_three_equal_channels():
    data = encoded(smooth_image(2)[..., 0], "JPEG")
    assert (decode(data) == by_pillow(data)).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_other_formats_are_read_too(form):
    data = encoded(smooth_image(3, 50, 60), form, lossless=True)
    assert (decode(data) == smooth_image(3, 50, 60)).all()
    assert (
        crop_of(data, Crop(32, "center")).tolist() == smooth_image(3, 50, 60)[9:41, 14:46].tolist()
    )


def test_a_image_of_the_crops_size_comes_whole():
    data = jpeg(smooth_image(4, 64, 64))
    for mode in ("random", "center"):
        assert (crop_of(data, Crop(64, mode), 9) == by_pillow(data)).all()


def test_center_crop_is_the_middle():
    data = jpeg(smooth_image(5, 80, 100))
    assert (crop_of(data, Crop(64, "center")) == by_pillow(data)[8:72, 18:82]).all()


def test_random_crops_are_windows_of_the_image_and_reach_all_of_them():
    data = jpeg(smooth_image(6, 36, 40))
    whole = by_pillow(data)
    seen = set()
    for draw in range(400):
        cut = plan(Crop(32), 36, 40, mix(draw))
        assert (cut.height, cut.width, cut.rows, cut.flip) == (32, 32, 0, False)
        seen.add((cut.top, cut.left))
        if draw < 5:
            window = whole[cut.top : cut.top + 32, cut.left : cut.left + 32]
            assert (crop_of(data, Crop(32), mix(draw)) == window).all()
    assert seen == {(top, left) for top in range(5) for left in range(9)}


def test_a_flip_mirrors_left_and_right_of_half_the_samples():
    data = jpeg(smooth_image(7, 48, 48))
    plain, mirrored = by_pillow(data), by_pillow(data)[:, ::-1]
    flips = 0
    for draw in range(200):
        out = crop_of(data, Crop(48, flip=True), mix(draw))
        assert (out == plain).all() or (out == mirrored).all()
        flips += bool((out == mirrored).all())
    assert 70 < flips < 130


def test_flip_keeps_the_place_of_the_crop():
    data = jpeg(smooth_image(8, 60, 60))
    for draw in range(20):
        flipped, plain = (crop_of(data, Crop(40, flip=flip), mix(draw)) for flip in (True, False))
        assert (flipped == plain).all() or (flipped == plain[:, ::-1]).all()


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (64, 200), (30, 45)])
def test_resize_gives_the_short_side_asked_for_and_stays_near_pillows(height, width):
    data = jpeg(smooth_image(9, height, width), 95)
    out = crop_of(data, Crop(64, "center", resize_short=64))
    scale = 64 / min(height, width)
    resized = Image.fromarray(by_pillow(data)).resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR,
    )
    top, left = (resized.height - 64) // 2, (resized.width - 64) // 2
    expected = np.asarray(resized)[top : top + 64, left : left + 64]
    assert np.abs(out.astype(int) - expected).mean() < 3


def test_resized_crops_are_boxes_of_the_asked_area_and_aspect():
    crop = Crop(32, "resized", scale=(0.2, 0.5))
    for draw in range(500):
        cut = plan(crop, 300, 400, mix(draw))
        assert 0 <= cut.top <= 300 - cut.height and 0 <= cut.left <= 400 - cut.width
        assert 0.19 < cut.height * cut.width / 120_000 < 0.51
        assert 0.73 < cut.width / cut.height < 1.36
    assert len({plan(crop, 300, 400, mix(draw)) for draw in range(500)}) > 490


def test_resized_crops_show_the_box_that_was_drawn():
    data = jpeg(smooth_image(10, 300, 400), 95)
    whole = Image.fromarray(by_pillow(data))
    crop = Crop(32, "resized", flip=True)
    for draw in range(30):
        cut = plan(crop, 300, 400, mix(draw))
        box = (cut.left, cut.top, cut.left + cut.width, cut.top + cut.height)
        expected = np.asarray(whole.crop(box).resize((32, 32), Image.Resampling.BOX))
        out = crop_of(data, crop, mix(draw))
        out = out[:, ::-1] if cut.flip else out
        assert np.abs(out.astype(int) - expected).mean() < 8  # another box: above 40


def test_extreme_shapes_fall_back_to_the_largest_box_that_fits():
    cut = plan(Crop(32, "resized", scale=(1.0, 1.0)), 20, 2000, 5)
    assert (cut.height, cut.width) == (20, 27) and cut.left == (2000 - 27) // 2


def test_the_same_random_bits_give_the_same_crop():
    data = jpeg(smooth_image(11, 90, 90))
    crop = Crop(32, "resized", flip=True)
    assert (crop_of(data, crop, 77) == crop_of(data, crop, 77)).all()
    assert (crop_of(data, crop, 77) != crop_of(data, crop, 78)).any()


def test_one_scratch_serves_images_of_any_size():
    scratch = Scratch()
    for number, side in ((1, 300), (2, 40), (3, 500), (4, 64)):
        data = jpeg(smooth_image(number, side, side))
        out = np.zeros((32, 32, 3), np.uint8)
        decode_crop(data, Crop(32, "center"), 0, out, scratch)
        start = (side - 32) // 2
        assert (out == by_pillow(data)[start : start + 32, start : start + 32]).all()


def test_a_image_smaller_than_the_crop_is_refused_unless_it_is_resized():
    data = jpeg(smooth_image(12, 40, 100))
    with pytest.raises(ValueError, match="100x40 pixels is smaller than the crop of 64"):
        crop_of(data, Crop(64))
    assert crop_of(data, Crop(64, resize_short=64)).any()
    assert crop_of(data, Crop(64, "resized")).any()


def test_settings_that_contradict_are_refused():
    for settings, named in (
        ({"size": 0}, "size=0"),
        ({"size": 8, "mode": "corner"}, "corner"),
        ({"size": 8, "mode": "resized", "resize_short": 9}, "resize_short"),
        ({"size": 8, "resize_short": 7}, "resize_short=7"),
        ({"size": 8, "scale": (0.5, 0.1)}, "scale"),
    ):
        with pytest.raises(ValueError, match=named):
            Crop(**settings)


def bomb_jpeg(side):
    data = bytearray(jpeg(smooth_image(0, 16, 16)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def bomb_png(side):
    def chunk(name, body):
        checked = name + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [bomb_jpeg(65_000), bomb_png(65_000), bomb_png(12_000)],
    ids=["jpeg", "png", "small png"],
)
def test_bombs_are_refused_from_the_header(data, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a decoder ran")

    monkeypatch.setattr("simplejpeg.decode_jpeg", never)
    monkeypatch.setattr(Image.Image, "load", never)
    with pytest.raises(ValueError):
        header(data)


@pytest.mark.parametrize("data", [b"", b"GIF", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"x" * 100])
def test_what_is_no_image_is_a_value_error(data):
    with pytest.raises(ValueError):
        decode(data)


def test_a_truncated_jpeg_is_a_value_error():
    data = jpeg(smooth_image(13, 200, 200))
    with pytest.raises(ValueError):
        decode(data[: len(data) // 2])


def test_cmyk_of_other_peoples_sets_becomes_rgb():
    data = encoded(smooth_image(14, 50, 50), "JPEG", quality=95)
    sink = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("CMYK").save(sink, "JPEG", quality=95)
    assert np.abs(decode(sink.getvalue()).astype(int) - smooth_image(14, 50, 50)).mean() < 5


def test_decode_threads_are_the_only_parallelism():
    assert cv2.getNumThreads() == 1
