"""DeepFill's order of contextual attention against its code, written out per image in loops."""

import pytest
import torch
import torch.nn.functional as F

from models.contextual_attention import contextual_attention
from tests.support.maps import features, holes


def naive(f, hole, temperature=10.0):
    """Yu et al.'s contextual_attention for one image: C×H×W in float64, hole (H/2)×(W/2).

    As theirs, step by step: cut patches, convolve, fuse with eye(3), softmax, transposed
    convolution; a hole that leaves no clean window falls back to known cells.
    """
    small = f[:, ::2, ::2]
    channels, h, w = small.shape
    keys = F.unfold(small[None], 3, padding=1)[0].T  # N × 9C
    lengths = keys.square().sum(1).sqrt().clamp(min=1e-4)
    kernels = (keys / lengths[:, None]).view(-1, channels, 3, 3)
    scores = F.conv2d(small[None], kernels, padding=1)[0].view(h * w, h * w).T  # query × key
    eye = torch.eye(3, dtype=f.dtype)[None, None]
    scores = F.conv2d(scores[None, None], eye, padding=1)[0, 0]
    scores = scores.view(h, w, h, w).permute(1, 0, 3, 2).reshape(1, 1, h * w, h * w)
    scores = F.conv2d(scores, eye, padding=1)[0, 0]
    scores = scores.view(w, h, w, h).permute(1, 0, 3, 2).reshape(h * w, h * w)
    clean = torch.zeros(h, w, dtype=f.dtype)
    for y in range(h):
        for x in range(w):
            clean[y, x] = not hole[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any()
    if not clean.any():
        clean = 1 - hole.to(f.dtype)
    clean = clean.flatten()
    weights = (scores * clean * temperature).softmax(1) * clean
    patches = F.unfold(f[None], 4, padding=1, stride=2)[0].T.view(-1, channels, 4, 4)
    weights = weights.T.view(1, h * w, h, w)
    return F.conv_transpose2d(weights, patches, stride=2, padding=1)[0] / 4


@pytest.mark.parametrize("kind", ["center", "border", "each its own", "no clean window"])
@pytest.mark.parametrize(("height", "width"), [(12, 20), (16, 10)])
def test_it_is_the_authors_code_for_each_image_with_its_own_hole(kind, height, width):
    f = features(3, 5, height, width)
    mask = holes(kind, 3, height // 2, width // 2)
    (found,) = contextual_attention(f, mask, (3,), order="yu", blend="none")
    for i in range(3):
        hole = mask[i, 0] > 0
        expected = f[i] if hole.all() else naive(f[i], hole)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], f[0], atol=1e-2)


def test_gradients_are_those_of_the_authors_code():
    f, mask = features(2, 4, 12, 16).requires_grad_(), holes("center", 2, 6, 8)
    weight = features(2, 4, 12, 16, seed=1)
    (found,) = contextual_attention(f, mask, (3,), order="yu", blend="none", temperature=3.0)
    (ours,) = torch.autograd.grad((found * weight).sum(), f)
    expected = torch.stack([naive(x, m[0] > 0, 3.0) for x, m in zip(f, mask)])
    (theirs,) = torch.autograd.grad((expected * weight).sum(), f)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_copies_come_from_the_known_part_alone_and_the_hole_alone_can_be_filled():
    f, mask = features(1, 3, 16, 16), holes("center", 1, 8, 8)
    forbidden = F.interpolate(mask, scale_factor=2)
    (every,) = contextual_attention(f, mask, (3,), order="yu", blend="none")
    (blended,) = contextual_attention(f, mask, (3,), order="yu")
    torch.testing.assert_close(blended, torch.where(forbidden > 0, every, f))
    # A constant map is at most itself: forbidden keys keep their share of a row.
    constant = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    (filled,) = contextual_attention(constant, mask, (3,), order="yu", blend="none")
    assert filled.max() <= 1 + 1e-12 and filled.min() > 0.1


def test_maps_of_odd_sides_are_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        contextual_attention(features(1, 3, 9, 8), holes("center", 1, 9, 8), (3,), order="yu")
