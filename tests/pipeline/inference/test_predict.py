import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin
from skimage import data
from torch import nn

from models import Prediction
from models.inpainter import Inpainter
from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose
from pipeline.inference import archive, demo, predict, tiling
from pipeline.inference.images import decode
from pipeline.inference.sources import LoadedInpainter, check_masked_pixels_unused, load
from tests.support.pairs import crops, hole, image_set, mask_set


class Two(nn.Module):
    """A generator of two layers: exporting a whole MSA-Net takes half a minute."""

    multiple, smallest = 8, 8

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(4, 8, 9, stride=4, padding=4)
        self.up = nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, erased, mask):
        features = self.down(torch.cat([erased, mask], 1)).relu()
        return Prediction(self.up(features).sigmoid(), {"down": features})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small, untrained network, exported to an archive."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.pt2"
    archive.save(Inpainter(Two().eval()), path)
    return str(path)


@pytest.fixture(scope="module")
def model(exported):
    return load(model=exported)


def run(**words):
    config = compose("predict", [f"{k}={v}" for k, v in words.items()]).config
    COMMANDS["predict"].check(config)
    return predict.main(config)


def photograph(folder, name="cat.png", **options):
    image = Image.fromarray(data.chelsea()[40:237, 100:311])  # 211×197: no multiple of anything
    image.save(folder / name, **options)
    return folder / name


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_known_pixels_are_bit_for_bit_and_the_hole_is_filled(tmp_path, kind):
    source = photograph(tmp_path)
    out = tmp_path / f"out.{kind}"
    result = run(model="mean_color", image=source, mask="50,60,70,40", out=out, strip="true")
    before, after = pixels(source), pixels(out)
    assert result["written"] == [str(out)]
    assert result["holes"] == [pytest.approx(70 * 40 / (211 * 197))]
    hole = np.zeros(before.shape[:2], bool)
    hole[60:100, 50:120] = True
    assert (after[~hole] == before[~hole]).all()
    assert (after[hole] != before[hole]).mean() > 0.5
    strip = pixels(result["strips"][0])
    assert strip.shape == (197, 3 * 211 + 8, 3)
    assert (strip[:, :211] == before).all() and (strip[:, -211:] == after).all()


def test_an_archive_fills_only_the_hole_whatever_pixels_are_under_the_mask(model):
    image = data.chelsea()[40:237, 100:311]  # 211×197: no multiple of anything
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[60:100, 50:120] = 1
    scribbled = image.copy()
    scribbled[60:100, 50:120] = 255
    result = tiling.fill_any(model.fill, image, mask)
    assert (result[mask == 0] == image[mask == 0]).all()
    assert (result[mask == 1] != image[mask == 1]).mean() > 0.5
    assert (result == tiling.fill_any(model.fill, scribbled, mask)).all()


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda image, mask: (image, 0.5 * mask), "threshold it"),
        (lambda image, mask: (image, mask[..., :-8]), "one (mask )?per image"),
        (lambda image, mask: (image * float("nan"), mask), "NaN"),
        (lambda image, mask: (image * 255, mask), r"scale its pixels to \[0, 1\]"),
    ],
)
def test_an_archive_rejects_inputs_that_its_graph_would_accept(exported, change, line):
    loaded = archive.load(exported)
    image, mask = torch.full((1, 3, 40, 48), 0.5), torch.ones(1, 1, 40, 48)
    assert loaded(image, mask).shape == image.shape
    with pytest.raises(ValueError, match=line):
        loaded(*change(image, mask))


def test_a_mask_file_and_the_same_rectangle_give_the_same_result(tmp_path):
    source = photograph(tmp_path)
    mask = np.zeros((197, 211), np.uint8)
    mask[60:100, 50:120] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for name, given in (("a", tmp_path / "mask.png"), ("b", "50,60,70,40")):
        run(model="telea", image=source, mask=given, out=tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_transparent_pixels_are_the_hole_and_the_result_is_opaque(tmp_path):
    opaque = pixels(photograph(tmp_path))
    alpha = np.full(opaque.shape[:2], 255, np.uint8)
    alpha[20:50, 30:80] = 0
    Image.fromarray(np.dstack([opaque, alpha])).save(tmp_path / "cut.png")
    run(model="telea", image=tmp_path / "cut.png", mask="alpha", out=tmp_path / "out.png")
    after = pixels(tmp_path / "out.png")
    assert after.shape == opaque.shape
    assert (after[alpha > 0] == opaque[alpha > 0]).all()
    with pytest.raises(ValueError, match="has no alpha channel"):
        run(model="telea", image=tmp_path / "cat.png", mask="alpha", out=tmp_path / "x.png")


def test_another_mask_keeps_the_transparency_of_the_image(tmp_path):
    opaque = pixels(photograph(tmp_path))
    alpha = np.tile(np.arange(opaque.shape[1], dtype=np.uint8), (opaque.shape[0], 1))
    Image.fromarray(np.dstack([opaque, alpha])).save(tmp_path / "soft.png")
    run(model="telea", image=tmp_path / "soft.png", mask="9,9,20,20", out=tmp_path / "out.png")
    assert (pixels(tmp_path / "out.png")[..., 3] == alpha).all()


def test_exif_orientation_is_applied_once_and_the_profile_is_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° for display
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = photograph(tmp_path, exif=exif, icc_profile=profile)
    out = tmp_path / "out.png"
    run(model="telea", image=source, mask="5,150,40,50", out=out)  # fits the upright image only
    after = Image.open(out)
    assert after.size == (197, 211)
    assert after.getexif().get(0x0112, 1) == 1
    assert after.info["icc_profile"] == profile
    upright = np.rot90(pixels(source), -1)
    assert (np.asarray(after)[:150] == upright[:150]).all()


def test_16_bit_gray_palette_and_cmyk_images_become_the_documented_rgb():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)

    def through(image, kind="PNG"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return decode(buffer.getvalue())

    gray = through(Image.fromarray(ramp.astype(np.uint8))).pixels
    assert (gray == ramp[..., None]).all()
    deep = through(Image.fromarray(ramp * 257)).pixels  # the same grays at 16 bits
    assert (deep == ramp[..., None]).all()
    night = through(Image.fromarray(ramp)).pixels  # 16 bits, all of them below 1/256 of the range
    assert (night == 0).all()
    two = Image.fromarray(ramp.astype(np.uint8) % 2).convert("P")
    two.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    assert set(map(tuple, through(two).pixels.reshape(-1, 3))) == {(10, 20, 30), (200, 100, 50)}
    red = through(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF").pixels
    assert (abs(red.astype(int) - [255, 0, 0]) < 30).all()


def test_one_unreadable_image_of_a_folder_does_not_stop_the_others(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    photograph(folder, "a.png")
    (folder / "b.png").write_bytes(b"not an image")
    photograph(folder, "c.jpg")
    (folder / "notes.txt").write_text("left alone")
    with pytest.raises(ValueError, match=r"1 of 3 images could not be filled.*b\.png"):
        run(model="telea", image=folder, mask="5,5,20,20", out=out)
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.jpg"]


def test_each_image_of_a_folder_gets_the_mask_of_its_name(tmp_path):
    folder, masks = tmp_path / "in", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    for name, box in (("a", (0, 0, 9, 9)), ("b", (50, 50, 90, 90))):
        photograph(folder, f"{name}.png")
        mask = Image.new("L", (211, 197))
        mask.paste(255, box)
        mask.save(masks / (f"{name}.png" if name == "a" else f"{name}_mask.png"))
    result = run(model="telea", image=folder, mask=masks, out=tmp_path / "out")
    assert result["holes"] == [pytest.approx(n / (211 * 197)) for n in (81, 1600)]
    photograph(folder, "c.png")
    with pytest.raises(ValueError, match=r"has no mask for c\.png: add c_mask\.png"):
        run(model="telea", image=folder, mask=masks, out=tmp_path / "out")


# Row 22
@pytest.mark.parametrize(
    ("files", "mask", "written"),
    [
        (["a.png", "a_mask.png"], "in", ["a.png"]),
        (["a.png", "a_mask.png"], "linked", ["a.png"]),
        (["a.jpg", "a_MASK.png", "b.png", "b_mask.webp"], "5,5,9,9", ["a.jpg", "b.png"]),
        (["a.png", "b.png", "b_mask.png"], "in", "has no mask for a.png: add a_mask.png"),
        (["a.png", "b.png"], "in/b.png", r"in/b\.png: the mask looks like a photograph"),
        (["a.png", "b.png", "hole_mask.png"], "in/hole_mask.png", ["a.png", "b.png"]),
        (["a.png", "a_mask000.png", "b.png", "b_MASK1.png"], "in", ["a.png", "b.png"]),
        (
            ["a.png", "a_mask000.png", "a_mask001.png"],
            "in",
            "has a_mask000.png and a_mask001.png for one image: keep one",
        ),
        (["a_mask.png"], "in", "nor a folder of images"),
    ],
)
def test_no_mask_is_filled_and_no_image_is_its_own_mask(
    tmp_path, monkeypatch, files, mask, written
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").symlink_to("in")
    for name in files:
        if "_mask" in name.lower():
            Image.fromarray(np.pad(np.full((40, 70), 255, np.uint8), ((60, 97), (50, 91)))).save(
                tmp_path / "in" / name, lossless=True
            )
        else:
            photograph(tmp_path / "in", name)
    given = {"model": "mean_color", "image": "in", "mask": mask, "out": "out"}
    if isinstance(written, str):
        with pytest.raises(ValueError, match=written):
            run(**given)
        assert not (tmp_path / "out").exists()
        return
    result = run(**given)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    box = 81 if mask == "5,5,9,9" else 70 * 40
    assert result["holes"] == [pytest.approx(box / (211 * 197))] * len(written)


# Row 33
@pytest.mark.parametrize(
    "mask",
    ["10, 10, 20, 20", "[10,10,20,20]", " [10, 10, 20, 20] ", "(10,10,20,20)", "10,10 ,20,20"],
)
def test_a_rectangle_may_have_spaces_and_brackets(tmp_path, mask):
    result = run(model="mean_color", image=photograph(tmp_path), mask=mask, out=tmp_path / "x.png")
    assert result["holes"] == [pytest.approx(20 * 20 / (211 * 197))]


# Row 33
@pytest.mark.parametrize(
    "mask", ["10.5,1,2,3", "1,2,3", "[1,2,3,4,5]", "-1,2,3,4", "1;2;3;4", "1,2,3,", "+1,2,3,4.0"]
)
def test_another_rectangle_is_rejected_with_the_form(tmp_path, mask):
    with pytest.raises(ValueError, match=r"a rectangle is x,y,w,h in whole pixels"):
        run(model="mean_color", image=photograph(tmp_path), mask=mask, out=tmp_path / "x.png")


# Row 25
@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "L"), ("a.jpg", "L"), ("a.png", "LA"), ("a.png", "I;16")]
)
def test_gray_stays_gray(tmp_path, monkeypatch, name, mode):
    def colored(image, mask):
        return torch.full_like(image, 0.9) * torch.tensor([1.0, 0.5, 0.1])[:, None, None]

    monkeypatch.setitem(predict.sources.BASELINES, "telea", colored)
    ramp = np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    image = (
        Image.fromarray(ramp.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(ramp)
    )
    image = image.convert(mode)
    image.save(tmp_path / name)
    words = {"image": tmp_path / name, "mask": "32,32,64,64", "strip": "true"}
    result = run(model="telea", **words, out=tmp_path / "out" / name)
    after = Image.open(result["written"][0])
    assert after.mode == ("L" if mode == "I;16" else mode)
    known = np.pad(np.zeros((64, 64), bool), 32, constant_values=True)
    before, filled = ramp, np.asarray(after.convert("L"))
    if name == "a.png":
        assert (filled[known] == before[known]).all()
    assert len(np.unique(filled[~known])) <= 8 and filled[64, 64] != before[64, 64]
    strip = pixels(result["strips"][0])
    assert (strip == strip[..., :1]).all()


# Row 26
@pytest.mark.parametrize(("name", "size"), [("wide.webp", (17000, 20)), ("tall.webp", (20, 17000))])
def test_an_image_that_its_format_cannot_hold_does_not_stop_the_others(tmp_path, name, size):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.new("RGB", size).save(folder / name, "PNG")  # a name may lie
    photograph(folder, "z.png")
    with pytest.raises(ValueError, match=rf"1 of 2 images .*{name} cannot be written: .*16383"):
        run(model="telea", image=folder, mask="0,0,9,9", out=out)
    assert [path.name for path in out.iterdir()] == ["z.png"]


# Row 26
@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG"])
def test_transparent_pixels_are_laid_on_white_where_a_format_has_no_alpha(tmp_path, name):
    layer = np.full((64, 64, 4), (10, 200, 30, 255), np.uint8)
    layer[:, 32:] = 10, 200, 30, 0
    layer[32:, :32, 3] = 51  # a fifth
    Image.fromarray(layer).save(tmp_path / "x.png")
    run(model="telea", image=tmp_path / "x.png", mask="0,0,8,8", out=tmp_path / name)
    after = pixels(tmp_path / name).astype(int)
    for place, color in (
        ((20, 20), (10, 200, 30)),
        ((20, 50), (255,) * 3),
        ((50, 20), (206, 244, 210)),
    ):
        assert (abs(after[place] - color) <= 4).all()


READABLE = ("b.tif", "c.TIFF", "d.bmp", "e.avif", "f.jfif", "g.gif")


# Row 27
@pytest.mark.parametrize("recursive", [False, True])
def test_every_readable_image_is_filled_and_what_is_not_taken_is_said(tmp_path, capsys, recursive):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "photos.jpg").mkdir()
    (folder / "sub" / "loop").symlink_to("..")
    for name in ("a.png", *READABLE, "sub/a.png", "sub/deep/h.tif"):
        photograph(folder, name)
    for name in ("x.HEIC", "sub/y.heic"):
        (folder / name).write_bytes(b"heic")
    for litter in ("._a.png", "._a_mask.png", ".DS_Store", "Thumbs.db"):
        (folder / litter).write_bytes(b"\0\5\x16\7")
    run(model="mean_color", image=folder, mask="5,5,9,9", out=out, recursive=recursive)
    written = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    deep = {"sub/a.png", "sub/deep/h.png"} if recursive else set()
    assert written == {"a.png", *(f"{name[0]}.png" for name in READABLE)} | deep
    said = capsys.readouterr().err
    if recursive:
        reasons = ("2 .heic", "1 sub-folder (recursive=true)")  # the link to a folder around it
    else:
        reasons = ("1 .heic", "2 sub-folders (recursive=true)")
    assert "predict: 3 files were skipped (" in said and all(text in said for text in reasons)
    assert "sub/loop" not in "".join(written)
    for name in ("b.png", "c.png", "d.png"):  # formats without loss
        before, after = pixels(photograph(tmp_path)), pixels(out / name)
        assert (np.delete(after, range(5, 14), 0) == np.delete(before, range(5, 14), 0)).all()


# Row 27
@pytest.mark.parametrize("name", ["m.tif", "m.bmp", "m.avif", "m.gif"])
def test_masks_of_every_readable_format_are_read(tmp_path, name):
    mask = Image.new("L", (211, 197))
    mask.paste(255, (48, 64, 112, 96))
    mask.save(tmp_path / name)
    source = photograph(tmp_path)
    for given in (tmp_path / name, tmp_path):
        words = {"image": source, "mask": given}
        if given == tmp_path:  # a folder of masks
            mask.save(tmp_path / f"cat_mask{name[1:]}")
            (tmp_path / "in").mkdir()
            words["image"] = photograph(tmp_path / "in").parent
        result = run(model="mean_color", **words, out=tmp_path / "out")
        assert result["holes"] == [pytest.approx(64 * 32 / (211 * 197), rel=0.02)]


# Row 27
@pytest.mark.parametrize(
    ("mask", "masks", "line"),
    [
        ("in/m", ["m/a.png", "m/sub/b.png"], "1 file was skipped (1 mask)"),
        ("in/sub/m", ["sub/m/a.png", "sub/m/sub/b.png"], "1 file was skipped (1 mask)"),
        ("in/hole.png", ["hole.png"], "1 file was skipped (1 mask)"),
        ("in/sub/hole.tif", ["sub/hole.tif"], "1 file was skipped (1 mask)"),
        ("linked", ["m/a_mask.png", "m/sub/b_mask.png"], "1 file was skipped (1 mask)"),
        ("out of it", ["../out of it/a.png", "../out of it/sub/b.png"], ""),
    ],
)
def test_masks_among_the_images_of_a_tree_are_not_filled(
    tmp_path, monkeypatch, capsys, mask, masks, line
):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/sub/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        photograph(Path(name).parent, Path(name).name)
    Path("linked").symlink_to("in/m")
    for name in masks:
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.pad(np.full((40, 70), 255, np.uint8), ((60, 97), (50, 91)))).save(
            Path("in", name)
        )
    result = run(model="mean_colour", image="in", mask=mask, out="out", recursive="true")
    assert result["written"] == ["out/a.png", "out/sub/b.png"]
    assert result["holes"] == [pytest.approx(70 * 40 / (211 * 197))] * 2
    assert capsys.readouterr().err == (f"predict: {line}\n" if line else "")


def test_a_tree_of_images_and_masks_keeps_its_layout(tmp_path):
    for place, box in (("in/one", (0, 0, 9, 9)), ("in/two", (0, 0, 30, 30))):
        (tmp_path / place).mkdir(parents=True)
        photograph(tmp_path / place, "a.jpg")
        mask = Image.new("L", (211, 197))
        mask.paste(255, box)
        mask.save(tmp_path / place / "a_mask.png")
    words = {"model": "telea", "image": tmp_path / "in", "mask": tmp_path / "in"}
    result = run(**words, out=tmp_path / "out", recursive="true", strip="true")
    assert [p.removeprefix(f"{tmp_path}/out/") for p in result["written"]] == [
        "one/a.jpg",
        "two/a.jpg",
    ]
    assert result["holes"] == [pytest.approx(n / (211 * 197)) for n in (81, 900)]
    with pytest.raises(ValueError, match="lies inside the input "):
        run(**words, out=tmp_path / "in" / "new", recursive="true")


# Row 34
@pytest.mark.parametrize(
    ("files", "strip", "clash"),
    [
        (["a.png", "a.tif"], "false", "a.png would be written for .*a.png and .*a.tif: rename one"),
        (["a.bmp", "a.gif"], "false", "a.png would be written for"),
        (["a.jpg", "a.png"], "true", "a_strip.png would be written for"),
        (["a.jpg", "a_strip.png"], "true", "a_strip.png would be written for"),
        (["a.jpg", "a.png", "a.webp"], "false", ""),
    ],
)
def test_no_result_is_written_twice_under_one_name(tmp_path, files, strip, clash):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in files:
        photograph(folder, name)
    words = {"model": "telea", "image": folder, "mask": "5,5,9,9", "out": tmp_path / "out"}
    if clash:
        with pytest.raises(ValueError, match=clash):
            run(**words, strip=strip)
        assert not (tmp_path / "out").exists()
    else:
        assert len(run(**words, strip=strip)["written"]) == len(files)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>'
    b'<rdf:Description tiff:Orientation="6" title="cat \xc3\xa9"/></rdf:RDF></x:xmpmeta>'
)


# Row 34
@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize(
    ("source", "out"),
    [("a.png", "a.png"), ("a.jpg", "a.jpg"), ("a.webp", "a.webp"), ("a.tif", "a.png")]
    + [("a.jpg", "b.png"), ("a.png", "b.jpg"), ("a.png", "b.webp"), ("a.avif", "b.png")],
)
def test_text_xmp_and_resolution_are_kept_where_the_format_has_them(tmp_path, source, out, turned):
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Ann")
    text.add_itxt("Title", "猫", "ja", "題")
    xmp = XMP.replace(b'"6"', b'"%d"' % turned)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    exif = Image.Exif()
    exif[0x0112] = turned
    exif[0x010E] = "a cat"
    tiff = {"tiffinfo": {700: xmp, 0x0112: turned}} if source == "a.tif" else {"exif": exif}
    options = {"dpi": (300, 300), "xmp": xmp, "pnginfo": text, "lossless": True, **tiff}
    photograph(tmp_path, source, **options)
    words = {"model": "telea", "image": tmp_path / source, "mask": "5,5,9,9"}
    run(**words, out=tmp_path / "out" / out)
    before, after = Image.open(tmp_path / source), Image.open(tmp_path / "out" / out)
    expected = xmp if turned == 1 else XMP.replace(b'tiff:Orientation="6"', b"")
    assert after.info["xmp"].strip(b"\0") == expected
    assert after.size == ((211, 197) if turned == 1 else (197, 211))
    if "dpi" in before.info and not out.endswith("webp"):
        assert after.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    if source != "a.tif":
        assert after.getexif()[0x010E] == "a cat" and after.getexif().get(0x0112, 1) == 1
    if (source, out) == ("a.png", "a.png"):
        assert after.text["Author"] == "Ann" and after.text["Title"] == "猫"
        assert after.text["Title"].lang == "ja"


# Row 34
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 40}),
        ("RGB", {"quality": 88, "subsampling": 1}),
        ("RGB", {"quality": 97, "subsampling": 0}),
        ("L", {"quality": 30}),
        ("RGB", {"quality": 60, "exif": True}),
    ],
)
def test_a_jpeg_is_written_with_its_own_quality(tmp_path, mode, options):
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 8
    Image.fromarray(data.chelsea()).convert(mode).save(tmp_path / "a.jpg", **options)
    run(model="telea", image=tmp_path / "a.jpg", mask="64,64,32,32", out=tmp_path / "b.jpg")
    before, after = Image.open(tmp_path / "a.jpg"), Image.open(tmp_path / "b.jpg")
    assert after.mode == mode and after.quantization == before.quantization
    sampling = JpegImagePlugin.get_sampling
    assert sampling(after) == sampling(before)
    assert (tmp_path / "b.jpg").stat().st_size < 1.1 * (tmp_path / "a.jpg").stat().st_size
    upright = ImageOps.exif_transpose(before)
    away = np.ones(upright.size[::-1], bool)
    away[48:112, 48:112] = False
    change = abs(np.asarray(after).astype(int) - np.asarray(upright))[away]
    assert change.mean() < (0.5 if "exif" not in options else 4)  # the same blocks


@pytest.mark.parametrize(
    ("source", "out", "options"),
    [
        ("a.png", "a.jpg", {"exif": bytes(70_000)}),
        ("a.png", "a.jpg", {"dpi": (0, 0)}),
        ("a.tif", "a.png", {"dpi": (1e9, 1e9)}),
        ("a.webp", "a.jpg", {"xmp": b"x" * 100_000}),
    ],
)
def test_metadata_that_the_format_cannot_hold_is_left_out(tmp_path, source, out, options):
    photograph(tmp_path, source, **options)
    words = {"image": tmp_path / source, "mask": "5,5,9,9", "out": tmp_path / "out" / out}
    assert len(run(model="telea", **words)["written"]) == 1
    assert pixels(tmp_path / "out" / out).shape == (197, 211, 3)


def disk(grow):
    """The rectangle 90..99 × 60..79 and all pixels within `grow` of it, by definition."""
    y, x = np.indices((197, 211))
    dy = np.maximum(np.maximum(90 - y, y - 99), 0)
    dx = np.maximum(np.maximum(60 - x, x - 79), 0)
    return np.hypot(dy, dx), np.hypot(dy, dx) <= grow


@pytest.mark.parametrize(
    ("grow", "feather"), [(0, 0), (7, 0), (8, 3), (8, 8), (3, 9), (0, 5), (120, 10)]
)
@pytest.mark.parametrize("command", ["predict", "demo"])
def test_a_hole_grows_and_its_edge_blends_inside_the_grown_rim(tmp_path, command, grow, feather):
    source = photograph(tmp_path)
    white = torch.ones
    words = [f"mask.grow={grow}", f"mask.feather={feather}"]
    inpainter = LoadedInpainter(lambda image, mask: white(image.shape), "white", {})
    before = pixels(source)
    if command == "predict":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict.sources, "load", lambda **_: inpainter)
            result = run(
                **dict(word.split("=") for word in words),
                model="telea",
                image=source,
                mask="60,90,20,10",
                out=tmp_path / "out.png",
            )
        after = pixels(tmp_path / "out.png").astype(int)
        assert result["holes"] == [pytest.approx(disk(grow)[1].mean())]
    else:
        mask = Image.new("L", (211, 197))
        mask.paste(255, (60, 90, 80, 100))
        mask.save(tmp_path / "mask.png")
        config = compose("demo", ["model=telea", *words]).config
        files = (source.read_bytes(), (tmp_path / "mask.png").read_bytes())
        body = demo.fill_png(inpainter, *files, config.mask)
        after = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    distance, grown = disk(grow)
    assert (after[~grown] == before[~grown]).all()
    solid = distance <= grow - min(feather, grow)
    assert (after[solid] == 255).all()
    rim = grown & ~solid
    share = ((grow + 1 - distance) / (min(feather, grow) + 1))[rim, None]
    expected = share * 255 + (1 - share) * before[rim]
    assert abs(after[rim] - expected).max(initial=0) <= 1.6  # two roundings


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ({"mask": "inverted.png", "mask.invert": "true"}, 0.05),
        ({"mask.file": "inverted.png", "mask.invert": "true"}, 0.05),
        ({"mask": "5,5,201,187", "mask.invert": "true"}, 1 - 201 * 187 / (211 * 197)),
        ({"mask": "black.png", "mask.grow": "9"}, 0),
    ],
)
def test_an_inverted_mask(tmp_path, monkeypatch, capsys, words, share):
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path)
    hole = np.zeros((197, 211), bool)
    hole.reshape(-1)[: round(hole.size * 0.05)] = True
    Image.fromarray(~hole).save("inverted.png")
    Image.fromarray(hole & False).save("black.png")
    result = run(model="telea", image="cat.png", out="x.png", **words)
    assert result["holes"] == [pytest.approx(share, abs=1e-4)]
    assert "invert it" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [{"mask.invert": "true"}, {"mask.grow": "300"}])
def test_a_mask_that_leaves_nothing_known_is_rejected(tmp_path, words):
    Image.new("L", (211, 197)).save(tmp_path / "m.png")
    if "mask.grow" in words:
        spot = Image.new("L", (211, 197))
        spot.putpixel((0, 0), 255)
        spot.save(tmp_path / "m.png")
    words |= {"image": photograph(tmp_path), "mask": tmp_path / "m.png", "out": tmp_path / "x.png"}
    with pytest.raises(ValueError, match="covers all of the image: leave known pixels"):
        run(model="telea", **words)


def test_a_sharded_set_and_a_mask_set_are_a_stream_of_pairs(tmp_path):
    images = image_set(tmp_path / "images", crops())
    masks = mask_set(tmp_path / "masks", buckets=["(0.1,0.2]"])
    words = {"model": "telea", "image": images, "out": tmp_path / "out", "split": "val"}
    result = run(**words, mask=masks)
    assert [p.rsplit("/", 1)[-1] for p in result["written"]] == [f"{i:09d}.png" for i in range(5)]
    for i, (path, crop) in enumerate(zip(result["written"], crops())):
        mask = hole("(0.1,0.2]", i % 3)
        after = pixels(path)
        assert (after[mask == 0] == crop[mask == 0]).all()
        assert result["holes"][i] == mask.mean()
    assert len(run(**words, mask="5,5,20,20")["written"]) == 5
    with pytest.raises(ValueError, match="has no split 'test': set split= to one of val"):
        run(**{**words, "split": "test"}, mask=masks)


# Row 26
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"mask": "200,0,20,20"}, r"does not fit into .*cat\.png, which is 211×197"),
        ({"mask": "0,0,211,197"}, r"cat\.png: the mask covers all of .*leave known pixels"),
        ({"mask": "small.png"}, r"small\.png is 50×40, .*cat\.png is 211×197: use a mask"),
        ({"mask": "none.png"}, r"none\.png: no such image file"),
        ({"mask": "twos.png"}, r"twos\.png: the mask has no hole: its brightest pixel is 2"),
        ({"image": "none.png"}, r"none\.png: no such image file"),
        ({"image": "torn.png"}, r"torn\.png cannot be read as an image"),
        ({"image": "empty"}, "neither an image .* nor a folder of images"),
        ({"out": "out.gif"}, r"out=out\.gif: results are not written as \.gif; use one of \.png"),
        ({"out": "x.heic"}, r"not written as \.heic; use one of \.png"),
        ({"out": "x.pgn"}, r"not written as \.pgn"),
        ({"image": "large.tif"}, r"large\.tif has 600000000 bytes: too large to be an image"),
        ({"mask": "large.tif"}, r"large\.tif has 600000000 bytes"),
        ({"out": "new/x.TIFF"}, r"not written as \.tiff; use one of \.png, \.jpg"),
        ({"image": "one", "out": "x.bmp"}, r"not written as \.bmp"),
        ({"out": "cat.png"}, "would overwrite the input"),
        ({"model": "none.pt2"}, r"none\.pt2: no such file"),
        ({"model": "torn.png"}, r"torn\.png is not a torch.export archive"),
        ({"overlap": 300}, "expected 0 < overlap < tile / 2"),
    ],
)
def test_invalid_input_gives_a_one_line_error(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    whole = photograph(tmp_path).read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    photograph(tmp_path / "one")
    with open("large.tif", "wb") as file:
        file.truncate(600_000_000)
    Image.new("L", (50, 40), 255).save("small.png")
    Image.new("L", (211, 197), 2).save("twos.png")
    given = {"model": "telea", "image": "cat.png", "mask": "5,5,9,9", "out": "out.png", **words}
    with pytest.raises(ValueError, match=line) as error:
        run(**given)
    assert "\n" not in str(error.value)
    assert not {"out.png", "out.gif", "new", "x.bmp", "x.heic", "x.pgn"} & {
        p.name for p in tmp_path.iterdir()
    }


def test_a_model_of_inverted_mask_polarity_is_rejected(model):
    def inverted(image, mask):  # takes 1 = known
        return image * mask

    with pytest.raises(ValueError, match="depends on masked pixels: mask polarity is inverted"):
        check_masked_pixels_unused(LoadedInpainter(inverted, "theirs", {}), "cpu")
    check_masked_pixels_unused(model, "cpu")
    assert model.name == "small" and len(model.facts["sha256"]) == 64


@pytest.mark.parametrize("name", ["cat_Mask.png", "cat_MASK.tif", "cat_mask.PNG"])
def test_the_case_of_a_masks_name_does_not_matter(tmp_path, name):
    photograph(tmp_path)
    mask = Image.new("L", (211, 197))
    mask.paste(255, (48, 64, 112, 96))
    mask.save(tmp_path / name)
    result = run(model="mean_color", image=tmp_path, mask=tmp_path, out=tmp_path / "out")
    assert result["written"] == [str(tmp_path / "out" / "cat.png")]
    assert result["holes"] == [pytest.approx(64 * 32 / (211 * 197))]


def test_no_resolution_is_invented(tmp_path):
    Image.open(photograph(tmp_path)).save(tmp_path / "a.tif")
    run(model="mean_color", image=tmp_path / "a.tif", mask="5,5,9,9", out=tmp_path / "a.jpg")
    assert "dpi" not in Image.open(tmp_path / "a.jpg").info
