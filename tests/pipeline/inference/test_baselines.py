"""The harmonic fill, against functions that solve Laplace's equation and against relaxation."""

import numpy as np
import pytest
import torch

from pipeline.inference.baselines import harmonic

Y, X = np.mgrid[0:24, 0:32] / 32.0
HARMONIC = {
    "linear": 0.1 + 0.4 * X + 0.3 * Y,
    "saddle": 0.5 + 0.4 * (X**2 - Y**2),
    "product": 0.2 + 0.5 * X * Y,
}


def holes():
    """One inside, two apart, one pixel, one with an island; none touches the border."""
    one, two, pixel, ring = (np.zeros((24, 32), bool) for _ in range(4))
    one[5:17, 8:25] = True
    two[2:6, 3:9] = two[12:20, 15:30] = True
    pixel[7, 7] = True
    ring[3:20, 4:22] = True
    ring[9:12, 9:12] = False
    return {"one": one, "two": two, "pixel": pixel, "ring": ring}


def fill(image, hole):
    pair = (torch.tensor(x).float() for x in (image[None], hole[None, None]))
    return harmonic(*pair)[0].numpy()


@pytest.mark.parametrize("hole", holes())
@pytest.mark.parametrize("name", HARMONIC)
def test_a_discrete_harmonic_function_is_restored(name, hole):
    image = np.stack([HARMONIC[name], 1 - HARMONIC[name], HARMONIC[name] / 2])
    mask = holes()[hole]
    filled = fill(np.where(mask, 0.9, image), mask)
    assert np.abs(filled - image).max() < 1e-6


def test_a_hole_at_the_border_is_what_relaxation_converges_to():
    rng = np.random.default_rng(0)
    image, hole = rng.random((3, 12, 15)), np.zeros((12, 15), bool)
    hole[:7, :6] = hole[9:, 8:] = True
    relaxed = np.where(hole, 0.5, image)
    for _ in range(3000):
        x = np.pad(relaxed, ((0, 0), (1, 1), (1, 1)))
        there = np.pad(np.ones((12, 15)), 1)
        sides = [(slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1))]
        sides += [(b, a) for a, b in sides]
        mean = sum(x[:, a, b] for a, b in sides) / sum(there[a, b] for a, b in sides)
        relaxed = np.where(hole, mean, image)
    filled = fill(image, hole)
    assert np.abs(filled - relaxed).max() < 1e-5
    assert np.allclose(filled[:, ~hole], image[:, ~hole])


def test_without_known_pixels_it_is_gray():
    assert (fill(np.ones((3, 8, 8)), np.ones((8, 8), bool)) == 0.5).all()
