import numpy as np
import pytest
import torch
from skimage import color, data, feature
from torch import nn

from models.canny import canny, grayscale

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "brick", "grass")


def photograph(name):
    image = getattr(data, name)()
    gray = color.rgb2gray(image) if image.ndim == 3 else image / 255
    return np.ascontiguousarray(gray[:256, :320])


def mask(shape, seed):
    known = np.ones(shape, bool)
    rng = np.random.default_rng(seed)
    for y, x in rng.integers(0, 250, (6, 2)):
        known[y : y + rng.integers(5, 80), x : x + rng.integers(5, 80)] = False
    known[-40:, -30:] = False
    return known


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_edges_are_those_of_scikit_image_with_and_without_a_mask(name, dtype):
    gray = photograph(name).astype(dtype)
    known = mask(gray.shape, len(name))
    for m in (None, known):
        expected = feature.canny(gray.astype(float), sigma=2, mask=m)  # thresholds 0.1, 0.2
        tensors = [torch.from_numpy(x)[None, None] for x in (gray, known)]
        found = canny(tensors[0], None if m is None else tensors[1])
        assert found.dtype == tensors[0].dtype
        assert np.array_equal(found[0, 0].numpy(), expected) and expected.sum() > 200


@pytest.mark.parametrize(("sigma", "low", "high"), [(1.0, 0.05, 0.3), (3.0, 0.02, 0.05)])
def test_other_widths_and_thresholds(sigma, low, high):
    gray = photograph("chelsea")
    expected = feature.canny(gray, sigma, low, high)
    found = canny(torch.from_numpy(gray)[None, None], None, sigma, low, high)
    assert np.array_equal(found[0, 0].numpy(), expected) and expected.sum() > 200


def test_each_image_of_a_batch_has_the_edges_that_it_has_alone():
    gray = torch.stack([torch.from_numpy(photograph(n)[:96, :128])[None] for n in PHOTOGRAPHS[:4]])
    known = torch.stack([torch.from_numpy(mask((96, 128), s))[None] for s in range(4)]).double()
    together = canny(gray, known)
    for i in range(4):
        assert torch.equal(together[i], canny(gray[i : i + 1], known[i : i + 1])[0])
    spoiled = torch.where(known == 0, torch.full_like(gray, torch.nan), gray)
    assert torch.equal(canny(spoiled, known), together)


def test_weak_edges_are_followed_as_far_as_they_reach():
    gray = np.tile(np.linspace(0, 1, 600)[:, None] * 0.06, (1, 64))
    gray[:, 32:] += np.linspace(0.08, 0.2, 600)[:, None]  # one edge, strong at its lower end alone
    expected = feature.canny(gray, sigma=2)
    assert expected.sum() > 400
    assert np.array_equal(canny(torch.from_numpy(gray)[None, None])[0, 0].numpy(), expected)


@pytest.mark.slow
def test_the_exported_graph_follows_edges_for_128_rounds():
    class Edges(nn.Module):
        def forward(self, gray):
            return canny(gray)

    gray = torch.from_numpy(photograph("coins")[:200, :240]).float()[None, None]
    dims = {
        0: torch.export.Dim("n"),
        2: torch.export.Dim("h", min=4),
        3: torch.export.Dim("w", min=4),
    }
    program = torch.export.export(Edges(), (torch.rand(2, 1, 40, 48),), dynamic_shapes=(dims,))
    assert torch.equal(program.module()(gray), canny(gray)) and canny(gray).sum() > 200


def test_grayscale_is_scikit_images():
    image = data.astronaut()[:64, :64] / 255
    found = grayscale(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_allclose(found[0, 0].numpy(), color.rgb2gray(image), rtol=0, atol=1e-12)
