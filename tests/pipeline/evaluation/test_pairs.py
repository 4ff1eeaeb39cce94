"""Validation while training: fixed images, each with a hole of the kind trained on."""

import numpy as np
import pytest

from pipeline.config.compose import compose
from pipeline.evaluation.pairs import validation_pairs
from shards.manifest import open_manifest

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


def test_irregular_holes_come_from_every_bucket_and_center_masks_lie_in_the_middle(masks_of):
    ratios = sorted(mask.mean() for mask in masks_of("masks=irregular"))
    bounds = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert len(ratios) == 6
    assert all(low < r <= high for low, r, high in zip(bounds, ratios, bounds[1:]))
    middle = np.zeros((64, 64), np.uint8)
    middle[16:48, 16:48] = 1
    assert (masks_of("masks=center") == middle).all()
