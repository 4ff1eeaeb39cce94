"""Losses of the methods against the papers' equations and the authors' code, by hand."""

import pytest
import torch
import torch.nn.functional as F

from models.densenet import DenseNetDiscriminator
from models.vgg import VGG16Features
from pipeline.config.compose import options
from tests.support.objectives import Given, losses_of, objective

HOLE = torch.ones(2, 1, 8, 8)


def test_msanets_loss_is_its_equation_16():
    torch.manual_seed(0)
    image, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    ours, theirs = [torch.rand(2, 4, 5, 6)], [torch.rand(2, 4, 5, 6)]
    loss, values = losses_of(objective(), image, HOLE, Given(prediction, ours, theirs))

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
    released = objective("objective=musical_released")
    found = gradient(losses_of(released, real, hole, Given(ours), vgg, judge)[0], ours)

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
    words = [f"objective.{name}=0" for name in ("l1", "perceptual", "style", "tv", "adv")]
    words = ["objective=musical_paper", *words, f"objective.{term}=3", f"objective.span={span}"]
    found, logged = losses_of(objective(*words), image, mask, Given(prediction))
    expected = 3 * loss(prediction * span + low, image * span + low, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # The log is of images in [0, 1], whatever the range.
    torch.testing.assert_close(logged[f"g/{term}"], loss(prediction, image, mask))


def test_presets_of_musical_quote_pixel_weights_in_minus_1_to_1():
    names = [name for name in options("objective") if name.startswith("musical")]
    assert [objective(f"objective={name}").span for name in names] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], {"g/l2", "g/perceptual", "g/style"}),
        (["objective.style=0"], {"g/l2", "g/perceptual"}),
        (["objective=musical_paper"], {"g/l1", "g/perceptual", "g/style", "g/tv", "g/adv"}),
        (
            ["objective=musical_paper", "objective.adv=0"],
            {"g/l1", "g/perceptual", "g/style", "g/tv"},
        ),
    ],
)
def test_a_weight_of_zero_removes_the_term(words, names):
    image = torch.rand(1, 3, 96, 96)
    given, vgg = objective(*words), VGG16Features() if "musical" in str(words) else None
    judge = DenseNetDiscriminator(4, (1, 1, 1, 1)) if given.weights().get("adv") else None
    maps = [torch.rand(1, 4, 5, 6)]
    hole = torch.ones(1, 1, 96, 96)
    _, values = losses_of(given, image, hole, Given(image * 0.5, maps, maps), vgg, judge)
    assert set(values) == names


def test_the_pixel_loss_is_on_the_configured_image():
    image, prediction = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    for where, value in (("raw", 1.0), ("composite", 0.0)):
        words = ("objective.perceptual=0", "objective.style=0", f"objective.loss_on={where}")
        nothing = torch.zeros(1, 1, 8, 8)
        assert float(losses_of(objective(*words), image, nothing, Given(prediction))[0]) == value
