import io
import zipfile

import cv2
import numpy as np
import pytest

from shards.mask_import import import_masks, open_source, resolve_polarity
from shards.masks import BUCKETS, NAMES, bucket, irregular


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def published(per_bucket=4, size=64, black=False, only=BUCKETS):
    """{name: gray image} as NVIDIA's test set has them: flat, numbered, white holes."""
    holes = [
        irregular(size, size, low, high, 0, (n, i))
        for n, (low, high) in enumerate(only)
        for i in range(per_bucket)
    ]
    return {f"{i:05d}.png": (255 * (hole ^ black)).astype(np.uint8) for i, hole in enumerate(holes)}


def folder(tmp_path, pictures):
    for name, pixels in pictures.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return str(tmp_path)


@pytest.mark.parametrize(("black", "expected"), [(False, "hole_white"), (True, "hole_black")])
def test_the_ratios_tell_which_color_is_the_hole(tmp_path, black, expected):
    source = open_source(folder(tmp_path, published(black=black)))
    assert resolve_polarity(source, "auto") == expected
    assert resolve_polarity(source, expected) == expected
    wrong = "hole_black" if expected == "hole_white" else "hole_white"
    with pytest.raises(ValueError, match=f"contradicts.*set polarity={expected}"):
        resolve_polarity(source, wrong)


@pytest.mark.parametrize("form", ["{}", "file://{}", "~/masks"])
def test_a_source_is_a_path_however_it_is_written(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = folder(tmp_path / "masks", published(1))
    source = open_source(form.format(place))
    assert len(source.files) == 6 and source.digest() == open_source(place).digest()


def test_masks_that_fit_either_way_are_not_guessed(tmp_path):
    source = open_source(folder(tmp_path, published(only=BUCKETS[4:])))
    with pytest.raises(ValueError, match="do not decide.*polarity=hole_white or"):
        resolve_polarity(source, "auto")
    assert resolve_polarity(source, "hole_black") == "hole_black"
    assert resolve_polarity(source, "hole_white") == "hole_white"


@pytest.mark.parametrize("named", ["0.4-0.5", "40-50", "(0.4,0.5]", "40-50%"])
def test_a_folders_name_decides_where_the_six_buckets_do_not(tmp_path, named):
    pictures = {f"{named}/{n}": p for n, p in published(20, only=[(0.401, 0.45)]).items()}
    assert resolve_polarity(open_source(folder(tmp_path, pictures)), "auto") == "hole_white"


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["05-12"], ["folder 05-12/ means 5% to 12%"]),
        (["may/05-12", "may/05-13"], ["05-12/ means 5% to 12%", "05-13/ means 5% to 13%"]),
        (["0.02-0.03/new"], ["folder 0.02-0.03/ means 2% to 3%"]),
        (["2021-05"], []),
    ],
)
def test_a_folder_that_was_read_as_ratios_is_named_where_they_do_not_fit(tmp_path, folders, named):
    only = [(0.3, 0.4)] if named else BUCKETS[4:]
    pictures = {f"{f}/{n}": p for f in folders for n, p in published(5, only=only).items()}
    with pytest.raises(ValueError, match="do not decide.*set polarity=") as error:
        resolve_polarity(open_source(folder(tmp_path, pictures)), "auto")
    assert all(text in str(error.value) for text in named)
    assert str(error.value).count(" means ") == len(named)


def test_import_buckets_by_the_ratio_after_resizing(tmp_path):
    pictures = published(6)
    masks = list(import_masks(open_source(folder(tmp_path, pictures)), "hole_white", 32))
    for mask in masks:
        assert mask.hole.shape == (32, 32) and mask.hole.dtype == np.uint8
        # every second pixel of every second row, as nearest neighbor takes them
        assert (mask.hole == (pictures[mask.src][::2, ::2] > 127)).all()
        assert mask.bucket == bucket(mask.hole.mean())
    assert {mask.bucket for mask in masks} == set(NAMES)


def test_gray_edges_are_cut_at_the_threshold(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:4, :4], pixels[4:8, :4] = 128, 127
    (mask,) = import_masks(open_source(folder(tmp_path, {"a.png": pixels})), "hole_white", 16)
    assert mask.hole.sum() == 16 and mask.hole[:4, :4].all()


def test_ratios_outside_every_bucket_are_left_out(tmp_path):
    full, none = np.full((16, 16), 255, np.uint8), np.zeros((16, 16), np.uint8)
    pictures = {**published(2), "full.png": full, "none.png": none}
    assert len(list(import_masks(open_source(folder(tmp_path, pictures)), "hole_white", 64))) == 12


def test_a_zip_is_read_without_unpacking_and_in_order_of_names(tmp_path):
    pictures = published(3)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, pixels in reversed(pictures.items()):
            archive.writestr(f"mask/testing_mask_dataset/{name}", png(pixels))
        archive.writestr("__MACOSX/mask/._00000.png", b"not an image")
        archive.writestr("mask/readme.txt", b"hello")
    (tmp_path / "test_mask.zip").write_bytes(sink.getvalue())
    source = open_source(str(tmp_path / "test_mask.zip"))
    assert resolve_polarity(source, "auto") == "hole_white"
    masks = list(import_masks(source, "hole_white", 64))
    assert [mask.src.rsplit("/")[-1] for mask in masks] == sorted(pictures)
    for mask, pixels in zip(masks, pictures.values()):
        assert (mask.hole * 255 == pixels).all()


def test_the_digest_is_of_names_and_contents(tmp_path):
    pictures = published(1)
    first = open_source(folder(tmp_path / "a", pictures)).digest()
    assert open_source(folder(tmp_path / "b", pictures)).digest() == first
    pictures["00000.png"] = 255 - pictures["00000.png"]
    assert open_source(folder(tmp_path / "c", pictures)).digest() != first


def test_what_is_no_mask_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match="has no images"):
        open_source(str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="broken.png: not a mask image"):
        resolve_polarity(open_source(str(tmp_path)), "auto")
    with pytest.raises(ValueError, match="polarity=black"):
        resolve_polarity(open_source(str(tmp_path)), "black")
