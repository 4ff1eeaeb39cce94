"""The loss of each method against a transcription of its paper or its authors' code."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.config.compose import compose
from pipeline.training import method
from pipeline.training.method import Batch
from tests.support.strategies import engine_of

EXACT = {"rtol": 1e-6, "atol": 1e-7}


@pytest.fixture
def built(monkeypatch):
    """Builds a method of small networks, in evaluation mode, and draws a batch for it."""
    opened = []

    def build(words, side=64):
        shared = ["weights=random", "threads=1", "precision=fp32", f"data.crop={side}"]
        config = compose("train", [*words.split(), *shared]).config
        opened.append(engine_of(config, monkeypatch))
        networks = method.build(config, opened[-1].__enter__())
        for player in networks.players:
            player.module.eval()
        torch.manual_seed(1)
        image, mask = torch.rand(2, 3, side, side), torch.zeros(2, 1, side, side)
        mask[0, :, 12:40, 9:33], mask[1, :, 20:36, 30:50] = 1, 1
        return networks, Batch(image, mask, (6, 7), 3)

    yield build
    for engine in opened:
        engine.__exit__(None, None, None)


def l1(a, b):
    return (a - b).abs().mean()


def gram(x):
    n, c, h, w = x.shape
    return torch.einsum("nchw,ndhw->ncd", x, x) / (c * h * w)


def test_pconvs_loss(built):
    """Its paper's; VGG16 normalized as ImageNet; pixel losses in [-1, 1]."""
    networks, (image, mask, *_) = built(
        "model=pconv model.levels=5 model.width=0.1 objective=pconv"
    )
    loss = next(networks.losses(Batch(image, mask)))

    output = networks.generator(image * (1 - mask), mask).image
    composite = output * mask + image * (1 - mask)

    def pools(x):
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        x, found = (x - mean) / std, []
        for layer in networks.features.features:
            x = layer(x)
            found += [x] * isinstance(layer, torch.nn.MaxPool2d)
        return found

    y, out, comp = (2 * x - 1 for x in (image, output, composite))
    expected = l1(out * (1 - mask), y * (1 - mask)) + 6 * l1(out * mask, y * mask)
    for a, b, c in zip(pools(output), pools(composite), pools(image), strict=True):
        expected = expected + 0.05 * (l1(a, c) + l1(b, c))
        expected = expected + 120 * (l1(gram(a), gram(c)) + l1(gram(b), gram(c)))
    near = (F.conv2d(mask, torch.ones(1, 1, 3, 3), padding=1) > 0).float()  # grown by a pixel
    right = ((comp[..., 1:] - comp[..., :-1]).abs() * near[..., 1:] * near[..., :-1]).mean()
    down = (comp[..., 1:, :] - comp[..., :-1, :]).abs() * near[..., 1:, :] * near[..., :-1, :]
    expected = expected + 0.1 * (right + down.mean())
    torch.testing.assert_close(loss.total(), expected, **EXACT)


def bce(logits, label):
    return F.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, label))


def test_edgeconnects_losses(built):
    """Its authors' `process` of both models: D sees raw outputs, style is that of the hole."""
    networks, batch = built("model=edgeconnect model.width=0.1 objective=edgeconnect")
    image, mask = batch.image, batch.mask
    g1, g2, d1, d2 = networks.players
    losses = [loss.total() for loss in networks.losses(batch)]

    gray = (image * torch.tensor([0.2125, 0.7154, 0.0721])[:, None, None]).sum(1, keepdim=True)
    canny = networks.generator.targets(image, mask)["edges"]  # scikit-image's: test_canny.py
    assert canny.mean() > 0
    edges = g1.module(image * (1 - mask), mask)[0].sigmoid()
    (real, real_maps), (fake, maps) = (d1.module(torch.cat((gray, e), 1)) for e in (canny, edges))
    matching = sum(l1(a, b) for a, b in zip(maps, real_maps, strict=True))
    expected = [bce(fake, 1.0) + 10 * matching, (bce(real, 1.0) + bce(fake, 0.0)) / 2]

    known = g1.module(image * (1 - mask), mask)[1]
    output = g2.module(image * (1 - mask), mask, edges * mask + known * (1 - mask))
    share = mask.mean((1, 2, 3))

    def maps_of(x):
        found, block, number = {}, 1, 0
        for layer in networks.vgg.features:
            x = layer(x)
            number += isinstance(layer, torch.nn.Conv2d)
            if isinstance(layer, torch.nn.ReLU):
                found[block, number] = x
            if isinstance(layer, torch.nn.MaxPool2d):
                block, number = block + 1, 0
        return found

    total = ((output - image).abs().mean((1, 2, 3)) / share).mean()
    total = total + 0.1 * bce(d2.module(output)[0], 1.0)
    ours, theirs = maps_of(output), maps_of(image)
    content = [l1(ours[at], theirs[at]) for at in ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1))]
    ours, theirs = maps_of(output * mask), maps_of(image * mask)
    style = [l1(gram(ours[at]), gram(theirs[at])) for at in ((2, 2), (3, 4), (4, 4), (5, 2))]
    expected += [total + 0.1 * sum(content) + 250 * sum(style)]
    expected += [(bce(d2.module(image)[0], 1.0) + bce(d2.module(output)[0], 0.0)) / 2]
    torch.testing.assert_close(losses, expected, **EXACT)


def test_edgeconnects_image_network_first_learns_on_true_edges(built):
    words = "model=edgeconnect model.width=0.1 objective=edgeconnect objective.predicted=0"
    networks, batch = built(f"{words} objective.adv=0 objective.perceptual=0 objective.style=0")
    g1, g2, d1, d2 = networks.players
    g1.learns = d1.learns = d2.learns = False
    (loss,) = networks.losses(batch)
    true = networks.generator.targets(batch.image, batch.mask)["edges"]
    output = g2.module(batch.image * (1 - batch.mask), batch.mask, true)
    share = batch.mask.mean((1, 2, 3))
    expected = ((output - batch.image).abs().mean((1, 2, 3)) / share).mean()
    torch.testing.assert_close(loss.total(), expected, **EXACT)


@pytest.mark.parametrize("local", ["crop", "masked"])
def test_deepfills_losses(built, local):
    """Its authors' graph: images in [-1, 1], L1 on the hole's pixels, both critics' penalties."""
    words = f"model=deepfill model.width=0.1 objective=deepfill objective.local={local}"
    networks, batch = built(words, 96)
    image, mask = batch.image, batch.mask
    generator, critics = (player.module for player in networks.players)
    losses = [loss.total() for loss in networks.losses(batch)]

    real = 2 * image - 1
    refined, maps = generator(image * (1 - mask), mask)
    expected = 0
    for factor, x in ((1.0, 2 * refined - 1), (1.2, 2 * maps["coarse"] - 1)):
        for i in range(2):
            away = 0  # pixels from the nearest known one
            for row, column in mask[i, 0].nonzero().tolist():
                known = (mask[i, 0] == 0).nonzero() - torch.tensor([row, column])
                off = known.abs().max(1).values.min()
                away += 0.9 ** (off - 1) * (x - real)[i, :, row, column].abs().mean()
            inside = away / mask[i].sum()
            outside = ((x - real)[i].abs().mean(0) * (1 - mask[i, 0])).sum() / (1 - mask[i]).sum()
            expected = expected + factor * 1.2 * (inside + outside) / 2

    fake = image * (1 - mask) + refined * mask

    def judged(x):
        near, hole = critics.near(x, mask)
        return critics.whole(x)[0][:, 0], critics.local(near, hole)[0][:, 0]

    expected = expected - 0.001 * sum(judged(fake)).mean()
    torch.testing.assert_close(losses[0], expected, **EXACT)

    wgan = sum(b.mean() - a.mean() for a, b in zip(judged(image), judged(fake), strict=True))
    for index, name in enumerate(("whole", "local")):
        at = batch.uniform(name)
        x = (2 * fake - 1 + at * (real - 2 * fake + 1)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(judged((x + 1) / 2)[index].sum(), x, create_graph=True)
        wgan = wgan + 10 * (((slope * mask).square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
    torch.testing.assert_close(losses[1], wgan, **EXACT)


def test_a_resting_generator_fills_and_the_critics_alone_learn(built):
    networks, batch = built("model=deepfill model.width=0.1 objective=deepfill", 96)
    networks.players[0].learns = False
    (loss,) = networks.losses(batch)
    loss.total().backward()
    assert loss.player.name == "discriminator" and set(loss.values) == {"d/loss", "d/penalty"}
    assert all(p.grad is None for p in networks.generator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in loss.player.module.parameters() if p.dim() > 1)
