"""Terms and phases against the papers' equations, by hand."""

import pytest
import torch

from pipeline.config.compose import compose
from pipeline.config.groups import Phase, check_phases, phase_at
from pipeline.training.method import Computed, generator_terms, total


def objective(*words):
    return compose("train", words).config.objective


def test_msanets_loss_is_its_equation_16():
    torch.manual_seed(0)
    image, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    ours, theirs = [torch.rand(2, 4, 5, 6)], [torch.rand(2, 4, 5, 6)]
    computed = Computed(image, mask, prediction, prediction, ours, theirs)
    loss, values = total(generator_terms(objective()), computed)

    l2 = ((prediction - image) ** 2).mean()
    perceptual = ((ours[0] - theirs[0]) ** 2).mean()
    style = 0.0
    for a, b in zip(ours[0], theirs[0]):
        a, b = a.reshape(4, 30), b.reshape(4, 30)
        style += ((a @ a.T - b @ b.T) / (4 * 5 * 6)).abs().sum() / (4 * 4) / 2
    torch.testing.assert_close(values["g/l2"], l2)
    torch.testing.assert_close(values["g/perceptual"], perceptual)
    torch.testing.assert_close(values["g/style"], style)
    torch.testing.assert_close(loss, l2 + 0.001 * perceptual + 250 * style)


def test_a_weight_of_zero_removes_the_term():
    names = [t.name for t in generator_terms(objective("objective.style=0"))]
    assert names == ["g/l2", "g/perceptual"]
    musical = [t.name for t in generator_terms(objective("objective=musical_paper"))]
    assert musical == ["g/l1", "g/perceptual", "g/style", "g/tv", "g/adv"]
    without = [
        t.name for t in generator_terms(objective("objective=musical_paper", "objective.adv=0"))
    ]
    assert "g/adv" not in without


def test_the_pixel_loss_is_on_the_configured_image():
    image, prediction = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    computed = Computed(image, torch.zeros(1, 1, 4, 4), prediction, image)
    for where, value in (("raw", 1.0), ("composite", 0.0)):
        terms = generator_terms(
            objective("objective.perceptual=0", "objective.style=0", f"objective.loss_on={where}")
        )
        assert float(total(terms, computed)[0]) == value


def test_phases_are_looked_up_by_images_seen():
    phases = [Phase(until=10, lr=1.0), Phase(until=30, lr=2.0), Phase(lr=3.0)]
    assert [phase_at(phases, n).lr for n in (0, 9, 10, 29, 30, 10**9)] == [1, 1, 2, 2, 3, 3]
    assert phase_at([Phase(None, 2.0, 3.0)], 5, 0.5) == Phase(None, 1.0, 1.5)
    closed = phases[:2]
    assert phase_at(closed, 99).lr == 2


@pytest.mark.parametrize("ends", [[], [None, 3], [5, 5], [9, 4, None]])
def test_phases_out_of_order_are_refused(ends):
    with pytest.raises(ValueError, match="phases"):
        check_phases([Phase(until=end) for end in ends])


def test_the_papers_refinement_follows_its_training():
    phases = objective().phases
    assert [p.lr for p in phases] == [3e-4, 1e-4]
    assert phase_at(phases, 0).lr == 3e-4 and phase_at(phases, 8_000_000).lr == 1e-4
