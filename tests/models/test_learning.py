"""The networks learn what their recipes ask for: slow tests on photographs of scikit-image."""

import math
import re
from dataclasses import asdict

import pytest
import torch
from skimage import data

from models import GENERATORS, losses
from models.densenet import DenseNetDiscriminator
from models.masking import composite, erase
from pipeline.config.compose import compose, options
from tests.support.objectives import losses_of

pytestmark = pytest.mark.slow


def photographs(size):
    """Eight crops of five photographs, 8×3×size×size in [0, 1]."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    sources += [*data.stereo_motorcycle()[:1], data.astronaut()[256:], data.coffee()[:, 300:]]
    sources += [data.chelsea()[:150, :200]]
    crops = []
    for photograph in sources:
        side = min(photograph.shape[:2])
        top, left = (photograph.shape[0] - side) // 2, (photograph.shape[1] - side) // 2
        square = torch.from_numpy(photograph[top : top + side, left : left + side].copy())
        x = square.movedim(2, 0)[None].float() / 255
        crops.append(torch.nn.functional.interpolate(x, (size, size), mode="area"))
    return torch.cat(crops)


def holes(n, size):
    """A square hole of a quarter of each image, elsewhere in each."""
    mask = torch.zeros(n, 1, size, size)
    for i in range(n):
        top, left = (i % 3) * size // 4, (i // 3) * size // 4
        mask[i, :, top : top + size // 2, left : left + size // 2] = 1
    return mask


def recipe(name, *words):
    """The options of the recipe's generator, and its loss as a function of (generator, batch)."""
    config = compose("train", [f"experiment={name}", *words]).config

    def loss(generator, image, mask):
        return losses_of(config.objective, image, mask, generator)[0]

    return {k: v for k, v in asdict(config.model).items() if k != "name"}, loss


# At these widths 250 x g/style would flatten the features: see conf/objective/msanet.yaml.
MSANET = "msanet/table6/places2", "objective.style=10"
MUSICAL = "musical/paris", *(f"objective.{term}=0" for term in ("perceptual", "style", "adv"))


def hole_psnr(result, image, mask):
    """Mean over images of the PSNR of hole pixels alone."""
    error = ((result - image) ** 2 * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return (-10 * error.log10()).mean().item()


@pytest.mark.parametrize(
    ("words", "small", "size", "steps"),
    [
        (MSANET, {"width": 0.25}, 48, 400),
        (MUSICAL, {"ngf": 16, "order": "paper"}, 64, 100),
        (MUSICAL, {"ngf": 16, "order": "released"}, 64, 100),
    ],
)
def test_eight_photographs_are_learned_6_db_better_than_their_mean_color(words, small, size, steps):
    torch.manual_seed(0)
    image, mask = photographs(size), holes(8, size)
    known = 1 - mask
    mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    yardstick = hole_psnr(composite(mean.expand_as(image), image, mask), image, mask)
    wide, loss = recipe(*words)
    generator = GENERATORS[words[0].split("/")[0]](**wide | small)
    optimiser = torch.optim.Adam(generator.parameters(), 1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(generator, image, mask).backward()
        optimiser.step()
    with torch.no_grad():
        filled = composite(generator(erase(image, mask), mask).image, image, mask)
    assert hole_psnr(filled, image, mask) >= yardstick + 6


@pytest.mark.parametrize(
    "row", [name for name in options("experiment") if re.match(r"msanet/table[2-5]/", name)]
)
def test_each_row_of_tables_2_to_5_trains(row):
    torch.manual_seed(0)
    image, mask = photographs(48), holes(8, 48)
    wide, loss = recipe(row)
    generator = GENERATORS["msanet"](**wide | {"width": 0.125})
    found = trained(generator, lambda: loss(generator, image, mask), 10)
    assert all(map(math.isfinite, found)) and found[-1] < found[0]


@pytest.mark.parametrize("attention", ["multi", "single", "none"])
@pytest.mark.parametrize("kind", ["vanilla", "lsgan"])
def test_musical_trains_against_its_discriminator(attention, kind):
    torch.manual_seed(0)
    image, mask = photographs(96), holes(8, 96)
    generator = GENERATORS["musical"](ngf=8, attention=attention)
    discriminator = DenseNetDiscriminator(growth=4, blocks=(2, 2, 2, 2))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999))

    def step():
        fake = generator(erase(image, mask), mask).image
        judged = losses.adversarial_discriminator(
            discriminator(image), discriminator(fake.detach()), kind
        )
        of_discriminator.zero_grad()
        judged.backward()
        of_discriminator.step()
        found.append(judged.item())
        adversarial = losses.adversarial_generator(discriminator(fake), kind)
        return 100 * losses.l1(fake, image) + 0.3 * adversarial

    found = []
    total = trained(generator, step, 10)
    assert all(map(math.isfinite, total + found))
    assert total[-1] < total[0] and found[-1] < found[0]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "small"),
    [
        (MSANET, {"width": 0.0625}),
        (MUSICAL, {"ngf": 4, "order": "paper"}),
        (MUSICAL, {"ngf": 4, "order": "released"}),
    ],
)
def test_steps_in_bf16_stay_finite_with_masks_of_nothing_and_everything(words, small, soak):
    torch.manual_seed(0)
    image = photographs(64)[:4]
    masks = [holes(4, 64), torch.ones(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)]
    wide, loss = recipe(*words)
    generator = GENERATORS[words[0].split("/")[0]](**wide | small)
    steps = soak.count(300)
    turn = iter(range(steps))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return loss(generator, image, masks[next(turn) % 3])

    found = trained(generator, step, steps)
    assert all(map(math.isfinite, found)) and min(found[-3:]) < found[0]
    assert all(p.isfinite().all() for p in generator.state_dict().values())


def trained(generator, step, steps):
    """Adam on what `step` returns; the losses. Every parameter must have moved."""
    before = [p.detach().clone() for p in generator.parameters()]
    optimiser = torch.optim.Adam(generator.parameters(), 1e-3)
    found = []
    for _ in range(steps):
        loss = step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert all(not torch.equal(p, b) for p, b in zip(generator.parameters(), before))
    return found
