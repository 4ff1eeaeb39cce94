"""Losses of the comparators against transcriptions of their papers' and authors' formulas."""

import pytest
import torch

from models.discriminators import GlobalLocal, StackDiscriminator
from pipeline.training.method import Batch
from tests.support.objectives import Given, method_of, objective


def drawn(side=32, n=2):
    """An image, another as the generator's output, and a hole of scattered blocks."""
    torch.manual_seed(0)
    mask = (torch.rand(n, 1, side // 4, side // 4) < 0.3).float()
    mask = mask.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.rand(n, 3, side, side), torch.rand(n, 3, side, side, requires_grad=True), mask


def filled(raw, image, mask):
    return mask * raw + (1 - mask) * image


def losses(given, image, mask, generator, judge, vgg=None):
    """Totals of the players' losses, and their terms."""
    method = method_of(given, generator, vgg, judge)
    found, terms = [], {}
    for loss in method.losses(Batch(image, mask)):
        found.append(loss.total())
        terms |= loss.values
    return found, terms


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def log_sigmoid(x):
    return -(1 + (-x).exp()).log()


@pytest.mark.parametrize("words", ["", "objective.mean_over=hole objective.judged=raw"])
def test_glc_is_its_weighted_l2_and_the_game_of_a_pair_of_discriminators(words):
    image, raw, mask = drawn()
    whole = StackDiscriminator(32, (8, 8), norm="batch", out=5)
    judge = GlobalLocal(whole, StackDiscriminator(16, (8,), norm="batch", out=5), joint=True)
    given = objective("objective=glc", *words.split())
    (g, d), terms = losses(given, image, mask, Given(raw), judge)

    square = ((mask * (raw - image)) ** 2).sum((1, 2, 3))
    per = 3 * mask.sum((1, 2, 3)) if "hole" in words else 3 * 32 * 32
    judged = raw if "raw" in words else filled(raw, image, mask)
    fake, real = judge(judged, mask)[0], judge(image, mask)[0]
    close(terms["g/l2"], (square / per).mean())
    close(g, (square / per).mean() + 0.0004 * -log_sigmoid(fake).mean())
    close(d, -(log_sigmoid(real).mean() + log_sigmoid(-fake).mean()) / 2)
