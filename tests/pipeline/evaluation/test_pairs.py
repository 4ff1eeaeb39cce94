"""Validation while training: fixed images, each with a hole of the kind trained on."""

import numpy as np
import pytest
import torch

from pipeline.config.compose import compose
from pipeline.data import shard
from pipeline.evaluation.pair_images import HEADING, contact_sheet, sample_positions
from pipeline.evaluation.pairs import pairs_of, validation_pairs
from shards.manifest import open_manifest
from shards.samples import archive
from shards.writer import write_set
from tests.support.sets import jpeg, sample, smooth_image

WORDS = ("experiment=quickstart", "validate.size=64", "validate.pairs=6")


@pytest.fixture
def masks_of(small_set):
    """The masks, uint8 N x H x W, of a configuration's pairs."""

    def masks_of(*words):
        config = compose("train", [*WORDS, f"data.url={small_set}", *words]).config
        pairs = validation_pairs(config, open_manifest(small_set))
        return pairs.load(0, len(pairs)).masks.numpy()

    return masks_of


def test_squares_are_validated_on_squares_the_same_whatever_the_seed(masks_of):
    masks = masks_of("masks=square")
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows) == len(columns) == 32 and mask.sum() == 32 * 32
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert len({mask.tobytes() for mask in masks}) == 6  # anywhere, not the center
    assert (masks_of("masks=square", "seed=5") == masks).all()


@pytest.mark.parametrize(
    ("words", "low", "high"),
    [
        (("masks=square", "masks.sides=[10,21]"), 10, 21),
        (("masks=square", "masks.sides=[24,24]"), 24, 24),
        (("masks=center", "masks.sides=[14]"), 14, 14),
        (("masks=square",), 32, 32),
        (("masks=center",), 32, 32),
    ],
)
def test_rectangles_have_the_sides_that_are_trained_on(masks_of, words, low, high):
    masks = masks_of(*words)
    found = [np.count_nonzero(mask.any(axis)) for mask in masks for axis in (0, 1)]
    assert low <= min(found) <= max(found) <= high
    assert low == high or len(set(found)) > 2
    if words[0] == "masks=center":
        assert (masks == np.flip(masks, (1, 2))).all()  # in the middle


def test_a_contact_sheet_has_a_row_for_each_sample(small_set):
    config = compose("train", [f"data.url={small_set}", *WORDS]).config
    pairs = validation_pairs(config, open_manifest(small_set))
    black = lambda image, mask: torch.zeros_like(image)  # noqa: E731
    sheet = contact_sheet(black, pairs, 2, torch.device("cpu"))
    assert sheet.shape == (HEADING + 2 * 64, 3 * 64, 3) and sheet.dtype == np.uint8
    for row, position in enumerate(sample_positions(pairs, 2)):
        batch = pairs.load(position, position + 1)
        image, hole = batch.images[0].numpy(), batch.masks[0].numpy() == 1
        top = HEADING + row * 64
        original, masked, result = np.split(sheet[top : top + 64], 3, axis=1)
        assert (original == image).all()
        assert (masked[hole] == 128).all() and (result[hole] == 0).all()
        assert (masked[~hole] == image[~hole]).all() and (result[~hole] == image[~hole]).all()
    assert contact_sheet(black, pairs, 0, torch.device("cpu")) is None


def test_other_sides_are_other_pairs(small_set):
    digests = set()
    for sides in ("[]", "[10,21]", "[10,22]"):
        words = [*WORDS, f"data.url={small_set}", "masks=square", f"masks.sides={sides}"]
        config = compose("train", words).config
        digests.add(validation_pairs(config, open_manifest(small_set)).digest)
    assert len(digests) == 3


def test_irregular_holes_come_from_every_bucket_and_center_masks_lie_in_the_middle(masks_of):
    ratios = sorted(mask.mean() for mask in masks_of("masks=irregular"))
    bounds = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert len(ratios) == 6
    assert all(low < r <= high for low, r, high in zip(bounds, ratios, bounds[1:]))
    middle = np.zeros((64, 64), np.uint8)
    middle[16:48, 16:48] = 1
    assert (masks_of("masks=center") == middle).all()


@pytest.mark.parametrize("size", ["large", "256"])
def test_results_record_which_archive_of_places2_their_images_are_from(tmp_path, size):
    """In those of 256x256 the aspect ratio is squashed, which no later step can see."""
    for i, name in enumerate((f"data_{size}/a/abbey", f"val_{size}")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(jpeg(smooth_image(i, 256, 256)))
    url = str(tmp_path / "set")
    words = ["data=places365_standard", f"source={tmp_path / 'in'}", f"out={url}", "workers=1"]
    shard.main(compose("shard", words).config)
    words = ["model=mean_colour", f"data.url={url}", "split=val", "protocol=musical"]
    _, facts = pairs_of(compose("evaluate", words).config)
    assert facts["archive"] == f"val_{size}"
    assert archive(open_manifest(url), "train") == f"data_{size}"


@pytest.mark.parametrize(
    "names", [["a/1.jpg", "b/2.jpg"], ["1.jpg", "2.jpg"], ["a/1.jpg", "2.jpg"]]
)
def test_images_of_several_folders_or_of_none_are_of_no_archive(tmp_path, names):
    images = [sample(name, jpeg(smooth_image(i)), 40, 40) for i, name in enumerate(names)]
    made = write_set(
        str(tmp_path), "test", "images", {"train": iter(images)}, options={}, per_shard=8
    )
    assert archive(made.manifest, "train") is None
