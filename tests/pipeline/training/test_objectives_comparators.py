"""Losses of the comparators against transcriptions of their papers' and authors' formulas."""

import pytest
import torch
import torch.nn.functional as F

from models.discriminators import GlobalLocal, PatchDiscriminator, StackDiscriminator
from models.id_mrf import confidence
from models.vgg import VGG16Features, VGG19Features
from pipeline.config.compose import compose
from pipeline.training import flops
from pipeline.training.method import Batch, build
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


def bce(logits, real):
    """The binary cross-entropy of the authors' code, with the logits' sigmoid."""
    return F.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, float(real)))


class Guided(Given):
    """A generator of the given output and decoder's features."""

    def __init__(self, raw, decoder, target):
        super().__init__(raw, [decoder])
        self.decoder, self.target = decoder, target

    def forward(self, erased, mask):
        return super().forward(erased, mask)._replace(features={"decoder": self.decoder})

    def targets(self, image, mask):
        return {"decoder": self.target}


def test_shift_nets_loss_is_a_hundredth_of_its_authors_code():
    """On images in [-1, 1]: 100 L1, features in the hole, 0.2 BCE; the judge's terms halved."""
    image, raw, mask = drawn()
    decoder, target = torch.rand(2, 6, 4, 4, requires_grad=True), torch.rand(2, 6, 4, 4)
    judge = PatchDiscriminator(norm="batch", width=0.1, signed=True)
    given = objective("objective=shiftnet")
    (g, d), _ = losses(given, image, mask, Guided(raw, decoder, target), judge)

    hole = mask.reshape(2, 1, 4, 8, 4, 8).amax((3, 5))  # cells of 8×8 pixels with a hole pixel
    assert 0 < hole.mean() < 1
    guidance = F.mse_loss(decoder * hole, target * hole)
    real, fake = judge(image)[0], judge(raw)[0]
    authors = 100 * F.l1_loss(2 * raw - 1, 2 * image - 1) + guidance + 0.2 * bce(fake, 1)
    close(g, authors / 100)
    close(d, (bce(real, 1) + bce(fake, 0)) / 2)
    assert torch.autograd.grad(g, decoder)[0].abs().sum() > 0


@pytest.mark.parametrize("center", [False, True])
def test_context_encoders_loss_is_its_authors_code(center):
    """On images in [-1, 1]: known pixels count ten times, in the band around a middle hole too."""
    image, raw, mask = drawn(128 if center else 64)
    if center:
        mask = torch.zeros(2, 1, 128, 128)
        mask[..., 36:92, 36:92] = 1
    judge = StackDiscriminator(64, (8, 8, 8, 8), kernel=4, norm="batch", bias=False, head="conv")
    generator = Given(raw)
    generator.center = center
    (g, d), _ = losses(objective("objective=context_encoder"), image, mask, generator, judge)

    weights = torch.where(mask > 0, 1.0, 10.0)
    if center:
        weights = torch.full((2, 1, 64, 64), 10.0)
        weights[..., 4:60, 4:60] = 1
        raw, image = raw[..., 32:96, 32:96], image[..., 32:96, 32:96]
    l2 = (weights * ((2 * raw - 1) - (2 * image - 1)) ** 2).mean()
    real, fake = judge(image)[0], judge(raw)[0]
    close(g, 0.999 * l2 + 0.001 * bce(fake, 1))
    close(d, bce(real, 1) + bce(fake, 0))


def similar(ours, theirs):
    """The contextual loss of the authors' code, one image."""
    center = theirs.mean((1, 2), keepdim=True)
    v, s = (F.normalize((x - center).flatten(1), dim=0) for x in (ours, theirs))
    distance = (1 - v.T @ s) / 2
    relative = ((1 - distance / (distance.amin(1, keepdim=True) + 1e-5)) / 0.5).exp()
    return -(relative / relative.sum(1, keepdim=True)).amax(0).mean().log()


def test_gmcnns_loss_is_its_authors_code():
    """For a square hole: their local window is the hole's. Images are in [-1, 1] but for VGG19."""
    image, raw, mask = drawn(64)
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 8:40, 20:52] = mask[1, :, 32:, :32] = 1
    windows = [(0, slice(8, 40), slice(20, 52)), (1, slice(32, 64), slice(0, 32))]
    options = {"act": "elu", "spectral": True, "width": 0.1}
    judge = GlobalLocal(
        StackDiscriminator(64, (64, 128), **options), StackDiscriminator(32, (64, 128), **options)
    ).eval()
    vgg = VGG19Features()
    (g, d), terms = losses(objective("objective=gmcnn"), image, mask, Given(raw), judge, vgg)

    completed, weights = filled(raw, image, mask), confidence(mask)
    reconstruction = auto = mrf = 0
    for x, y, m, w in zip(2 * raw - 1, 2 * image - 1, mask, weights):
        reconstruction = reconstruction + ((x - y).abs() * w).mean() / m.mean() / 2
        auto = auto + ((x - y).abs() * (1 - m)).mean() / (1 - m).mean() / 2
    for i, rows, columns in windows:
        maps = []
        for x in (completed, image):
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[
                ..., None, None
            ]
            x = (x[i : i + 1, :, rows, columns] - mean) / std
            activations = []
            for layer in vgg.features:
                x = layer(x)
                if isinstance(layer, torch.nn.ReLU):
                    activations.append(x[0].clone())
            maps.append((activations[5], activations[9]))  # conv3_2, conv4_2
        (ours3, ours4), (theirs3, theirs4) = maps
        mrf = mrf + (similar(ours3, theirs3) + 2 * similar(ours4, theirs4)) / 2
    (fake, _), (real, _) = judge(completed, mask), judge(image, mask)
    close(terms["g/id_mrf"], mrf)
    close(g, 1.4 * reconstruction + 1.2 * auto + 0.05 * mrf - 0.001 * fake.mean(0).sum())
    close(d, ((1 - real).relu().mean(0) + (1 + fake).relu().mean(0)).sum())


def test_lamas_loss_is_its_authors_code():
    """`masked_l1_loss`, `NonSaturatingWithR1`, `feature_matching_loss`; VGG16 for ResNet50."""
    image, raw, mask = drawn(64)
    judge = PatchDiscriminator(norm="batch", width=0.1, deep=True)
    vgg = VGG16Features()
    (g, d), terms = losses(objective("objective=lama"), image, mask, Given(raw), judge, vgg)

    points = image.clone().requires_grad_()
    real, theirs = judge(points)
    fake, ours = judge(raw)
    pixels = (10 * (1 - mask) * (raw - image).abs()).mean()
    matching = torch.stack([F.mse_loss(a, b) for a, b in zip(ours[:5], theirs[:5])]).mean()
    features = sum(F.mse_loss(a, b) for a, b in zip(vgg(raw), vgg(image)))
    close(g, pixels + 30 * features + 10 * F.softplus(-fake).mean() + 100 * matching)
    (slope,) = torch.autograd.grad(real.sum(), points, create_graph=True)
    near = F.interpolate(mask, fake.shape[2:], mode="nearest")
    assert len(ours) == 6 and 0 < near.mean() < 1
    told = near * F.softplus(fake) + (1 - near) * F.softplus(-fake)
    penalty = slope.flatten(1).norm(dim=1).square().mean()
    authors = F.softplus(-real).mean() + 0.001 * penalty + told.mean()
    close(terms["d/penalty"], penalty)
    close(d, authors)
    gradients = [torch.autograd.grad(x, list(judge.parameters())) for x in (d, authors)]
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)  # biases before norms


# Words, and sides that the rule of the discriminator excludes.
RULES = {
    "glc": ("model.dilations=[1]", [32, 96]),
    "glc masked": ("model.dilations=[1] objective.local=masked", [32, 96]),
    "shiftnet": ("model.levels=4", [16, 28]),
    "lama": ("model.blocks=1", [16, 28]),
    "gmcnn": ("model.dilations=[1] objective.id_mrf=0", [48, 80]),
    "gmcnn masked": ("model.dilations=[1] objective.id_mrf=0 objective.local=masked", [40, 72]),
    "context_encoder": ("model.levels=4 objective.d_levels=5", [64, 192]),
    "context_encoder center": (
        "model.levels=4 objective.d_levels=5 model.output=center",
        [64, 192],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_discriminator_takes_the_smallest_side_of_its_rule_and_none_that_it_excludes(name):
    words, excluded = RULES[name]
    method = name.partition(" ")[0]

    def judged(side):
        given = [f"model={method}", f"objective={method}", *words.split(), f"data.crop={side}"]
        small = ("model.width=0.1", "objective.d_width=0.1", "weights=random")
        networks = build(compose("train", [*given, *small]).config, flops._Counted())
        shown = side // 2 if "center" in words else side
        inputs = [torch.rand(2, 3, shown, shown), torch.ones(2, 1, shown, shown)]
        return networks.players[1].module(*inputs[: 1 + (method in ("glc", "gmcnn"))])[0]

    given = [word for word in words.split() if word.startswith("objective.")]
    multiple, smallest = objective(f"objective={method}", *given).discriminator_sides()
    assert judged(smallest).isfinite().all()
    for side in excluded:
        assert side % multiple or side < smallest
        with pytest.raises(ValueError):
            judged(side)
