"""Images larger than the network accepts: no seam, known pixels kept, bounded memory."""

import tracemalloc

import numpy as np
import pytest

from pipeline.inference import tiling


def constant(height=1300, width=1700, level=140):
    return np.full((height, width, 3), level, np.uint8)


class MeanFill:
    """Fill with the mean of the known pixels, plus a random error for each crop."""

    def __init__(self, spread=0.0):
        self.sizes, self.ratios, self.spread, self.pixels = [], [], spread, 0
        self.random = np.random.default_rng(0)

    def __call__(self, image, mask):
        self.sizes.append(max(image.shape[2:]))
        self.ratios.append(mask.mean().item())
        self.pixels += mask.shape[2] * mask.shape[3]
        known = 1 - mask
        mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        error = self.random.uniform(-self.spread, self.spread) / 255
        return (mean + error).expand_as(image)


@pytest.fixture
def holes():
    """One hole far larger than a tile, one small, a scratch across the whole image."""
    mask = np.zeros((1300, 1700), np.uint8)
    mask[300:1000, 200:1400] = 1
    mask[20:40, 1600:1650] = 1
    mask[1200:1203] = 1
    return mask


def test_a_constant_image_shows_no_seam(holes):
    model = MeanFill()
    result = tiling.fill_any(model, constant(), holes)
    assert abs(result.astype(int) - 140).max() <= 1
    assert max(model.sizes) <= 512 and len(model.sizes) > 4


def test_tiles_that_disagree_are_blended_without_a_step(holes):
    result = tiling.fill_any(MeanFill(spread=30), constant(), holes).astype(int)
    for axis in (0, 1):
        step = abs(np.diff(result[..., 0], axis=axis))
        both = np.delete(holes, 0, axis) * np.delete(holes, -1, axis)
        assert step[both == 1].max() <= 2  # 60 gray levels over 64 pixels, and rounding
    assert result[holes == 1].std() > 5  # they did disagree


def test_known_pixels_of_a_tiled_image_are_bit_identical(holes):
    image = np.random.default_rng(1).integers(0, 256, (1300, 1700, 3), dtype=np.uint8)
    result = tiling.fill_any(MeanFill(), image, holes)
    assert (result[holes == 0] == image[holes == 0]).all()
    assert (result[holes == 1] != image[holes == 1]).mean() > 0.9


def test_a_small_hole_in_a_large_image_is_one_crop_with_its_surroundings():
    mask = np.zeros((1300, 1700), np.uint8)
    mask[600:700, 800:1000] = 1
    model = MeanFill()
    tiling.fill_any(model, constant(), mask)
    assert model.sizes == [512]
    assert model.ratios == [pytest.approx(100 * 200 / 512**2)]


def test_crops_that_are_mostly_hole_are_not_used(holes):
    model = MeanFill()
    tiling.fill_any(model, constant(), holes)
    assert max(model.ratios) <= 0.6


# Row 31
def test_a_4k_image_needs_bounded_memory():
    image = constant(2160, 3840)
    mask = np.zeros((2160, 3840), np.uint8)
    mask[100::200] = 1  # connected scratches everywhere: every tile is filled
    mask[:, 1900:1910] = 1
    model = MeanFill()
    tracemalloc.start()  # NumPy's and OpenCV's arrays
    result = tiling.fill_any(model, image, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(model.sizes) <= 512 and len(model.sizes) > 30
    assert abs(result.astype(int) - 140).max() <= 1
    assert peak < 12 * mask.size  # bytes: less than one copy of the image in float32


def points(height, width, step):
    mask = np.zeros((height, width), np.uint8)
    mask[step // 7 :: step, step // 7 :: step] = 1
    return mask


def diagonals(height, width, step):
    row, column = np.indices((height, width))
    return ((row - column) % step == 0).astype(np.uint8)


def rings(height, width, step):
    row, column = np.indices((height, width))
    return ((row - height // 2) ** 2 + (column - width // 2) ** 2) ** 0.5 % step < 1


# Row 31
@pytest.mark.parametrize(
    "holes",
    [points(2160, 3840, 140), points(1000, 1000, 333)]
    + [points(513, 513, 140), points(400, 4000, 390), points(700, 1500, 71)]
    + [diagonals(1300, 1700, 400), rings(1300, 1700, 300).astype(np.uint8)],
)
def test_scattered_holes_cost_at_most_one_and_a_half_times_the_image(holes):
    model = MeanFill()
    image = np.random.default_rng(2).integers(0, 256, (*holes.shape, 3), dtype=np.uint8)
    result = tiling.fill_any(model, image, holes)
    assert model.pixels <= 1.5 * holes.size and max(model.sizes) <= 512
    assert (result[holes == 0] == image[holes == 0]).all()
    # The mean of noise; a hole that was left out would keep its own pixels.
    assert abs(result[holes == 1].astype(int) - 127.5).max() < 12


def test_neighboring_holes_share_a_crop_and_distant_ones_have_their_own():
    mask = np.zeros((2000, 3000), np.uint8)
    mask[100:130, 100:130] = mask[350:380, 200:330] = mask[1900:1950, 2900:2950] = 1
    model = MeanFill()
    tiling.fill_any(model, constant(2000, 3000), mask)
    hole = 30 * 30 + 30 * 130
    assert model.ratios == [pytest.approx(n / 512**2) for n in (hole, 50 * 50)]


def test_an_image_that_fits_the_tile_is_filled_in_one_piece():
    mask = np.zeros((300, 500), np.uint8)
    mask[10:20, 10:20] = 1
    model = MeanFill()
    tiling.fill_any(model, constant(300, 500), mask)
    assert model.sizes == [500]
    assert (tiling.fill_any(model, constant(300, 500), mask * 0) == 140).all()
