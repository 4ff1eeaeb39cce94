"""One table of masks, read alike by every command and by the served model."""

import io
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from skimage import data

from pipeline.evaluation import pairs
from pipeline.inference import demo, images, predict
from pipeline.registry.pyfunc import Inpaint
from shards.mask_import import import_masks, open_source
from shards.samples import ImageRecord

SIDE = 64
PHOTOGRAPH = data.astronaut()[:SIDE, 200 : 200 + SIDE]
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[16:32, 8:40] = True  # 12.5 %


def painted(paint, ground, dtype=np.uint8):
    """An array of one value in the hole and another elsewhere."""
    return np.where(HOLE.reshape(SIDE, SIDE, *[1] * np.ndim(paint)), paint, ground).astype(dtype)


def file(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette(paint):
    image = Image.fromarray(HOLE.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *paint])
    return image


def turned(pixels):
    """Stored lying, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(np.ascontiguousarray(np.rot90(pixels)), exif=exif)


def cut_out(opaque, pixels=PHOTOGRAPH):
    alpha = np.broadcast_to(np.where(opaque, 255, 0), (SIDE, SIDE)).astype(np.uint8)
    return np.dstack([pixels, alpha])


CLEAR = {
    "gray": file(painted(255, 0)),
    "1 bit": file(Image.fromarray(HOLE)),
    "gray, 0 and 1": file(painted(1, 0)),
    "gray, 0 and 128": file(painted(128, 0)),
    "16 bits": file(painted(65535, 0, np.uint16)),
    "16 bits, 0 and 1": file(painted(1, 0, np.uint16)),
    "16 bits, 0 and 255": file(painted(255, 0, np.uint16)),
    "red on black": file(painted((255, 0, 0), (0, 0, 0))),
    "blue on black": file(painted((0, 0, 255), (0, 0, 0))),
    "blue palette": file(palette((0, 0, 200))),
    "palette of 0 and 1": file(palette((1, 1, 1))),
    "JPEG": file(painted(255, 0), "JPEG", quality=50),
    "colored JPEG": file(painted((0, 255, 0), (0, 0, 0)), "JPEG", quality=95, subsampling=0),
    "WebP": file(painted((255, 255, 255), (0, 0, 0)), "WEBP", lossless=True),
    "turned by EXIF": turned(painted(255, 0)),
    "black layer": file(painted((0, 0, 0, 255), (0, 0, 0, 0))),
    "white layer on transparent white": file(painted((255, 255, 255, 255), (255, 255, 255, 0))),
    "half transparent layer": file(painted((255, 0, 0, 120), (0, 0, 0, 0))),
    "gray layer": file(Image.fromarray(painted((255, 255), (0, 0)), "LA")),
    "opaque RGBA": file(painted((255, 255, 255, 255), (0, 0, 0, 255))),
    "palette with a transparent ground": file(palette((0, 0, 0)), transparency=0),
    "hole cut out of a photograph": file(cut_out(~HOLE)),
}
UNCLEAR = {
    "photograph": (file(PHOTOGRAPH), "looks like a photograph"),
    "gray photograph": (file(data.camera()[:SIDE, 200 : 200 + SIDE]), "looks like a photograph"),
    "photograph as JPEG": (file(PHOTOGRAPH, "JPEG"), "looks like a photograph"),
    "dark gray": (file(painted(100, 0)), "no hole: its brightest pixel is 100"),
    "labels": (file(painted(3, 1)), "no hole: its brightest pixel is 3"),
    **{
        f"{share} painted {color} on a layer": (
            file(cut_out(np.arange(SIDE) < columns, np.full((SIDE, SIDE, 3), color, np.uint8))),
            rf"either part could be the hole \(the opaque one covers {share}\).*mask.invert=true",
        )
        for columns, share, color in [(32, "50%", 255), (39, "61%", 90), (45, "70%", 0)]
    },
    "hole cut out of white": (
        file(painted((255, 255, 255, 0), (255, 255, 255, 255))),
        "either part could be the hole",
    ),
    "black and white, partly transparent": (
        file(cut_out(np.arange(SIDE) < 60, painted((255,) * 3, (0,) * 3))),
        "either part could be the hole",
    ),
}


def by_predict(mask, folder):
    (folder / "mask.png").write_bytes(mask)
    image = images.ImageFile(PHOTOGRAPH)
    return predict.read_mask(str(folder / "mask.png"), image, "cat.png")


def by_demo(mask, folder):
    seen = []

    def fill(image, hole):
        seen.append(hole[0, 0].numpy())
        return image

    demo.fill_png(SimpleNamespace(fill=fill), file(PHOTOGRAPH), mask)
    return seen[0]


def by_serving(mask, folder):
    model = Inpaint()
    model.max_pixels = 512 * 512
    try:
        return model._pair(0, file(PHOTOGRAPH), mask)[1]
    except MlflowException as error:
        assert error.get_http_status_code() == 400
        raise ValueError(error.message) from error


def by_import(mask, folder):
    (folder / "mask.png").write_bytes(mask)
    (imported,) = import_masks(open_source(str(folder)), "hole_white", SIDE)
    return imported.hole


def by_pairs(mask, folder):
    (folder / "set").mkdir()
    (folder / "set" / "0.tar").write_bytes(mask)
    record = ImageRecord(0, str(folder / "set" / "0.tar"), 0, len(mask), zlib.crc32(mask), 0)
    pair = pairs.Pair("000000000-b0", record, record, "(0.1,0.2]")
    return pairs.Pairs((pair,), SIDE, None, "", False)._mask(pair)


READERS = [by_predict, by_demo, by_serving, by_import, by_pairs]


# Row 23
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CLEAR)
def test_a_clear_mask_is_the_same_hole_everywhere(tmp_path, name, reader):
    assert (reader(CLEAR[name], tmp_path) == HOLE).all()


# Row 24
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_mask_is_rejected_everywhere_with_the_reason(tmp_path, name, reader):
    mask, reason = UNCLEAR[name]
    with pytest.raises(ValueError, match=reason) as error:
        reader(mask, tmp_path)
    assert "\n" not in str(error.value)


# Row 24
@pytest.mark.parametrize(("rows", "share"), [(38, ""), (39, "61%"), (60, "94%"), (SIDE, "100%")])
def test_a_hole_above_what_networks_fill_is_doubted(tmp_path, capsys, rows, share):
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:rows] = 255
    line = f"the mask covers {share} of the image.*if the hole is black in this mask, invert"
    if rows < SIDE:  # a mask of everything is an error
        assert by_predict(file(pixels), tmp_path).sum() == rows * SIDE
        said = capsys.readouterr().err
        assert re.search(rf"mask\.png: {line}", said) if share else not said
    if share:
        with pytest.raises(ValueError, match=f"row 0: {line}"):
            by_serving(file(pixels), tmp_path)
    else:
        assert by_serving(file(pixels), tmp_path).sum() == rows * SIDE
