"""Terms and phases against the papers' equations, by hand."""

import pytest
import torch
import torch.nn.functional as F

from models.densenet import DenseNetDiscriminator
from models.vgg import VGG16Features
from pipeline.config.compose import compose, options
from pipeline.config.groups import ObjectiveConfig, Phase, check_phases, phase_at
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


def gradient(loss, at):
    return torch.autograd.grad(loss, at)[0]


def test_musicals_released_loss_is_that_of_the_authors_code_on_images_in_minus_1_to_1():
    """Gradient at the generated image; the authors' `backward_G` transcribed, weights included."""
    torch.manual_seed(0)
    vgg, judge = VGG16Features(normalize=False), DenseNetDiscriminator(4, (1, 1, 1, 1)).eval()
    ours = torch.rand(2, 3, 96, 96, requires_grad=True)
    real, hole = torch.rand(2, 3, 96, 96), torch.zeros(2, 1, 96, 96)
    hole[..., 24:72, 24:72] = 1
    filled = torch.where(hole > 0, ours, real)
    features, targets = (*vgg(ours), *vgg(filled)), (*vgg(real), *vgg(real))
    computed = Computed(real, hole, ours, filled, features, targets, judge(ours))
    found = gradient(
        total(generator_terms(objective("objective=musical_released")), computed)[0], ours
    )

    fake = (ours.detach() * 2 - 1).requires_grad_()
    truth = real * 2 - 1
    composite = fake * hole + truth * (1 - hole)

    def pools(x):
        out = []
        for layer in vgg.features:
            x = layer(x)
            out += [x] * isinstance(layer, torch.nn.MaxPool2d)
        return out

    def gram(x):
        n, c, h, w = x.shape
        return torch.einsum("nchw,ndhw->ncd", x, x) / (c * h * w)

    l1 = F.l1_loss
    perceptual = style = 0
    for generated in (fake, composite):
        for a, b in zip(pools(generated), pools(truth)):
            perceptual += l1(a, b)
            style += l1(gram(a), gram(b))
    tv = l1(fake[..., 1:], fake[..., :-1]) + l1(fake[..., 1:, :], fake[..., :-1, :])
    logits = judge.head(judge.features(fake).relu())
    adversarial = F.binary_cross_entropy(logits.sigmoid(), torch.ones_like(logits))
    loss = 100 * l1(fake, truth) + 6 * ((fake - truth) * hole).abs().mean() + 0.001 * tv
    loss = loss + 0.07 * perceptual + 250 * style + 0.3 * 0.2 * adversarial
    expected = gradient(loss, fake) * 2  # of images in [0, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


# Weights of pixel losses as their papers or codes quote them, in [-1, 1]: the loss must be the one
# computed there.
@pytest.mark.parametrize(
    ("term", "loss"),
    [
        ("l1", lambda x, y, m: (x - y).abs().mean()),
        ("l1_hole", lambda x, y, m: ((x - y).abs() * m).mean()),
        ("l2", lambda x, y, m: ((x - y) ** 2).mean()),
        ("tv", lambda x, y, m: x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()),
    ],
)
@pytest.mark.parametrize(("span", "low"), [(1.0, 0.0), (2.0, -1.0), (255.0, 0.0)])
def test_a_pixel_loss_is_that_of_images_in_the_range_its_weight_is_quoted_for(
    term, loss, span, low
):
    torch.manual_seed(0)
    image, prediction = torch.rand(2, 3, 6, 8), torch.rand(2, 3, 6, 8)
    mask = (torch.rand(2, 1, 6, 8) < 0.4).float()
    words = [f"objective.{name}=0" for name in ("l2", "perceptual", "style")]
    terms = generator_terms(objective(*words, f"objective.{term}=3", f"objective.span={span}"))
    found, logged = total(terms, Computed(image, mask, prediction, prediction))
    expected = 3 * loss(prediction * span + low, image * span + low, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # The log is of images in [0, 1], whatever the range.
    torch.testing.assert_close(logged[f"g/{term}"], loss(prediction, image, mask))


def test_presets_of_musical_quote_pixel_weights_in_minus_1_to_1_and_others_in_0_to_1():
    spans = {name: objective(f"objective={name}").span for name in options("objective")}
    musical = {name for name in spans if name.startswith("musical")}
    assert {spans[name] for name in musical} == {2.0} and len(musical) == 2
    assert spans["msanet"] == spans["msanet_vgg"] == ObjectiveConfig().span == 1.0


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
