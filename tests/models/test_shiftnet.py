import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import shiftnet
from models.shiftnet import ShiftNet, guidance, hole_cells, shift


def maps(n=3, c=5, height=6, width=7):
    torch.manual_seed(0)
    decoder, encoder = torch.randn(2, n, c, height, width, dtype=torch.float64)
    hole = torch.rand(n, 1, height, width) < 0.4
    return decoder, encoder, hole


def naive(decoder, encoder, hole):
    """One image, location by location: the cosine's largest over known cells."""
    shifted = torch.zeros_like(encoder)
    places = [(i, j) for i in range(hole.shape[0]) for j in range(hole.shape[1])]
    known = [place for place in places if not hole[place]]
    for i, j in (place for place in places if hole[place]):
        query, best = decoder[:, i, j], None
        for k, m in known:
            key = encoder[:, k, m]
            cosine = (query @ key / (query.norm() * key.norm())).item()
            if best is None or cosine > best[0]:
                best = cosine, (k, m)
        if best is not None:
            shifted[:, i, j] = encoder[:, best[1][0], best[1][1]]
    return shifted


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_the_shift_layer_is_the_search_location_by_location(block, monkeypatch):
    monkeypatch.setattr(shiftnet, "BLOCK", block)
    decoder, encoder, hole = maps()
    hole[2] = True  # nothing known, nothing shifted
    found = shift(decoder, encoder, hole)
    expected = torch.stack([naive(*x) for x in zip(decoder, encoder, hole[:, 0])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found[:2].abs().sum() > 1


def test_the_copied_gradient_goes_to_the_source_cells_and_none_to_the_decoder():
    decoder, encoder, hole = maps()
    decoder.requires_grad_(), encoder.requires_grad_()
    shift(decoder, encoder, hole).sum().backward()
    assert decoder.grad is None
    assert not encoder.grad[hole.expand_as(encoder)].any()
    assert encoder.grad.sum() == pytest.approx(hole.sum().item() * encoder.shape[1])


@pytest.mark.parametrize(("side", "cells"), [(120, 16), (128, 16), (1, 1)])
def test_a_cell_with_a_hole_pixel_is_a_hole(side, cells):
    mask = torch.zeros(1, 1, 256, 256)
    start = 128 - side // 2
    mask[..., start : start + side, start : start + side] = 1
    assert hole_cells(mask).shape == (1, 1, 32, 32)
    assert hole_cells(mask).sum() == cells**2


def test_guidance_is_the_mean_square_in_the_hole():
    torch.manual_seed(0)
    decoder, target = torch.rand(2, 4, 2, 3), torch.rand(2, 4, 2, 3, requires_grad=True)
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, 0, 3, 9] = mask[1, 0, 8:, :8] = 1
    cells = np.zeros((2, 1, 2, 3))
    cells[0, 0, 0, 1] = cells[1, 0, 1, 0] = 1
    masked = [x.detach().double().numpy() * cells for x in (decoder, target)]
    decoder.requires_grad_()
    loss = guidance(decoder, target, mask)
    assert loss.item() == pytest.approx(((masked[0] - masked[1]) ** 2).mean(), abs=1e-6)
    loss.backward()
    assert target.grad is None and not decoder.grad[cells.repeat(4, 1) == 0].any()


def transcribed(weights, image, mask):
    """The layer table of the Lua release at five levels: the image and the decoder's feature."""

    def norm(name, x):
        mean = x.mean((2, 3), keepdim=True)
        x = (x - mean) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        weight, bias = (weights[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return x * weight + bias

    def down(i, x):
        return F.conv2d(torch.where(x > 0, x, 0.2 * x), weights[f"down.{i}.1.weight"], None, 2, 1)

    def up(i, x):
        x = F.conv_transpose2d(x.relu(), weights[f"up.{i}.1.weight"], None, 2, 1)
        return norm(f"up.{i}.2", x)

    color = torch.tensor([123, 104, 117])[:, None, None] / 255
    x = image * (1 - mask) + color * mask
    e1 = F.conv2d(2 * x - 1, weights["first.weight"], None, 2, 1)
    e2 = norm("down.0.2", down(0, e1))
    e3 = norm("down.1.2", down(1, e2))
    e4 = norm("down.2.2", down(2, e3))
    e5 = down(3, e4)
    d4 = torch.cat((up(0, e5), e4), 1)
    d5 = up(1, d4)
    cells = F.max_pool2d(mask, 8)[:, 0] > 0
    shifted = [naive(*x) for x in zip(d5.relu(), e3.relu(), cells)]
    d5_all = torch.cat((d5, e3, torch.stack(shifted)), 1)
    d6 = torch.cat((up(2, d5_all), e2), 1)
    d7 = torch.cat((up(3, d6), e1), 1)
    d8 = F.conv_transpose2d(d7.relu(), weights["last.1.weight"], None, 2, 1)
    return (d8.tanh() + 1) / 2, d5.relu(), e3.relu()


def test_the_network_is_its_layer_table():
    torch.manual_seed(0)
    generator = ShiftNet(width=1 / 16, levels=5)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image, mask = torch.rand(2, 3, 64, 96), torch.zeros(2, 1, 64, 96)
    mask[0, :, 16:48, 20:50] = mask[1, :, :30, 60:] = 1
    with torch.no_grad():
        found, targets = generator(image, mask), generator.targets(image, mask)
        expected, decoder, _ = transcribed(generator.state_dict(), image, mask)
        _, _, encoder = transcribed(generator.state_dict(), image, 0 * mask)
    torch.testing.assert_close(found.image, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.features["decoder"], decoder, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(targets["decoder"], encoder, rtol=1e-4, atol=1e-4)
    assert found.image.std() > 0.05 and found.features.keys() == targets.keys() == {"decoder"}


def test_fewer_halvings_than_the_shift_layer_needs_are_refused():
    with pytest.raises(ValueError, match="levels=3; expected at least 4"):
        ShiftNet(levels=3)
