"""The oracles are loops over positions that follow the paper's formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from models import losses
from models.id_mrf import confidence, id_mrf


def naive(ours, theirs, form):
    """One map of one image, C×H×W each."""
    v, s = (x.reshape(len(x), -1).double().numpy() for x in (ours, theirs))
    center = s.mean(1, keepdims=True)
    v, s = ((x - center) / np.linalg.norm(x - center, axis=0) for x in (v, s))
    n = v.shape[1]
    similarity = np.zeros((n, n))
    for i in range(n):
        mu = np.array([v[:, i] @ s[:, j] for j in range(n)])
        for j in range(n):
            if form == "paper":
                others = max(mu[r] for r in range(n) if r != j)
                similarity[i, j] = math.exp(mu[j] / (others + 1e-5) / 0.5)
            else:
                nearest = min((1 - mu[r]) / 2 for r in range(n))
                similarity[i, j] = math.exp((1 - (1 - mu[j]) / 2 / (nearest + 1e-5)) / 0.5)
        similarity[i] /= similarity[i].sum()
    return -math.log(sum(max(similarity[:, j]) for j in range(n)) / n)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_id_mrf_is_the_formula(form):
    torch.manual_seed(0)
    ours, theirs = ([torch.rand(2, 6, 4, 5), torch.rand(2, 9, 3, 3)] for _ in range(2))
    expected = [np.mean([naive(a, b, form) for a, b in zip(*maps)]) for maps in zip(ours, theirs)]
    found = id_mrf([x.double() for x in ours], [x.double() for x in theirs], (1, 2), form)
    assert found.item() == pytest.approx(expected[0] + 2 * expected[1], abs=1e-6)
    low = id_mrf(ours, theirs, (1, 2), form)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(found.item(), rel=1e-4)


def test_id_mrf_is_0_for_equal_maps_and_log_n_where_one_patch_is_everywhere():
    torch.manual_seed(0)
    x = torch.rand(1, 64, 6, 7)
    assert id_mrf([x], [x], (1,), "released").item() == pytest.approx(0, abs=1e-5)
    same = x[..., 2:3, 3:4].expand_as(x)
    assert id_mrf([same], [x], (1,), "released").item() == pytest.approx(math.log(42), rel=1e-4)
    y = torch.rand(1, 64, 6, 7)
    once, scaled = (id_mrf([k * y], [k * x], (1,), "released").item() for k in (1, 7))
    assert once == pytest.approx(scaled, rel=1e-4) and once > 0.1


def test_id_mrf_teaches_the_generated_features_alone():
    ours, theirs = (torch.rand(1, 4, 3, 3, requires_grad=True) for _ in range(2))
    id_mrf([ours], [theirs], (1,), "paper").backward()
    assert theirs.grad is None and ours.grad.abs().sum() > 0


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="released, paper"):
        id_mrf([torch.rand(1, 2, 2, 2)], [torch.rand(1, 2, 2, 2)], (1,), "official")


@pytest.mark.parametrize(("size", "sigma"), [(65, math.inf), (65, 40.0), (17, 6.0)])
def test_confidence_is_the_blur_of_known_and_confident_pixels_in_holes(size, sigma):
    torch.manual_seed(0)
    mask = (torch.rand(2, 1, 9, 11) < 0.5).float().repeat_interleave(5, 2).repeat_interleave(5, 3)
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    found = confidence(mask, size, 3, sigma)
    for m, ours in zip(mask[:, 0].double().numpy(), found[:, 0]):
        expected = np.zeros_like(m)
        for _ in range(3):
            wide = np.pad(1 - m + expected, size // 2, mode="reflect")
            expected = fftconvolve(wide, kernel / kernel.sum(), mode="valid") * m
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_the_confidence_of_a_hole_in_the_middle_is_that_of_the_released_kernel():
    """Which was measured on their code."""
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 64:192, 64:192] = 1
    found = confidence(mask)[0, 0]
    assert found[128, 64].item() == pytest.approx(0.851, abs=0.0006)
    assert found[128, 128].item() == pytest.approx(0.495, abs=0.0006)
    assert not found[:64].any()


def test_the_confidence_is_the_same_in_half_precision():
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 5:30] = 1
    with torch.autocast("cpu", torch.bfloat16):
        found = confidence(mask)
    assert torch.equal(found, confidence(mask))


def test_the_reconstruction_loss_is_the_released_one_for_each_image():
    torch.manual_seed(0)
    prediction, image = torch.rand(2, 3, 40, 48), torch.rand(2, 3, 40, 48)
    mask = torch.zeros(2, 1, 40, 48)
    mask[0, :, 8:24, 8:20] = mask[1, :, 20:36, 4:44] = 1
    weights = confidence(mask, 33)
    expected, known = [], []
    for p, x, m, w in zip(*(t.double().numpy() for t in (prediction, image, mask, weights))):
        completed = p * m + x * (1 - m)
        expected.append(np.abs(completed * w - x * w).mean() / m.mean())
        known.append(np.abs(p * (1 - m) - x * (1 - m)).mean() / (1 - m).mean())
    found = losses.l1(prediction, image, weights, mask).item()
    assert found == pytest.approx(np.mean(expected), abs=1e-6)
    found = losses.l1(prediction, image, 1 - mask, 1 - mask).item()
    assert found == pytest.approx(np.mean(known), abs=1e-6)
    assert losses.l1(prediction, image, 0 * mask, 0 * mask) == 0
