"""The networks learn: slow tests on real photographs (scikit-image's)."""

import math

import pytest
import torch
from skimage import data

from models import GENERATORS, losses
from models.densenet import DenseNetDiscriminator
from models.masking import composite, erase

pytestmark = pytest.mark.slow

SMALL = {"msanet": {"width": 0.25}, "musical": {"ngf": 16}}
TINY = {"msanet": {"width": 0.0625}, "musical": {"ngf": 4}}


def photographs(size):
    """Eight crops of five photographs, 8×3×size×size in [0, 1]."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    sources += [*data.stereo_motorcycle()[:1], data.astronaut()[256:], data.coffee()[:, 300:]]
    sources += [data.chelsea()[:150, :200]]
    crops = []
    for picture in sources:
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        square = torch.from_numpy(picture[top : top + side, left : left + side].copy())
        x = square.movedim(2, 0)[None].float() / 255
        crops.append(torch.nn.functional.interpolate(x, (size, size), mode="area"))
    return torch.cat(crops)


def holes(n, size):
    """A square hole of a quarter of each picture, elsewhere in each."""
    mask = torch.zeros(n, 1, size, size)
    for i in range(n):
        top, left = (i % 3) * size // 4, (i // 3) * size // 4
        mask[i, :, top : top + size // 2, left : left + size // 2] = 1
    return mask


def objective(generator, image, mask):
    """The pixel term of each paper alone: L2 for MSA-Net (eq. 11), L1 for MUSICAL.

    At a quarter of the width 250 x style, which does not shrink with it, would drown the L2.
    """
    prediction = generator(erase(image, mask), mask)
    if prediction.features:
        return losses.l2(prediction.image, image)
    return 100 * losses.l1(prediction.image, image)


def hole_psnr(picture, image, mask):
    """Mean over pictures of the PSNR of hole pixels alone."""
    error = ((picture - image) ** 2 * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return (-10 * error.log10()).mean().item()


@pytest.mark.parametrize(
    ("name", "options", "steps", "rate"),
    [
        ("msanet", {}, 300, 2e-3),
        ("musical", {"order": "paper"}, 200, 1e-3),
        ("musical", {"order": "released"}, 200, 1e-3),
    ],
)
def test_eight_photographs_are_learnt_6_db_better_than_their_mean_colour(
    name, options, steps, rate
):
    torch.manual_seed(0)
    image, mask = photographs(64), holes(8, 64)
    known = 1 - mask
    mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    yardstick = hole_psnr(composite(mean.expand_as(image), image, mask), image, mask)
    generator = GENERATORS[name](**SMALL[name], **options)
    optimiser = torch.optim.Adam(generator.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(generator, image, mask).backward()
        optimiser.step()
    with torch.no_grad():
        filled = composite(generator(erase(image, mask), mask).image, image, mask)
    assert hole_psnr(filled, image, mask) >= yardstick + 6


BARE = {"channel": "none", "spatial": "none", "restore_channel": "none", "restore_spatial": "none"}
RESTORE = {"restore_channel": "augmented", "restore_spatial": "fusing"}
NO_MUM = {**BARE, "mask_update": False}
ABLATIONS = {
    "table 2 single scale": {**NO_MUM, "structure": "single"},
    "table 2 Inception V1": {**NO_MUM, "structure": "inception_v1"},
    "table 2 Inception V3": {**NO_MUM, "structure": "inception_v3"},
    "table 2 MSAG, table 3 no MUM": NO_MUM,
    "table 3 MUM, table 4 row 1": BARE,
    "table 4 row 2 (C-A)": {**BARE, "channel": "augmented"},
    "table 4 row 3 (S-A)": {**BARE, "spatial": "fusing"},
    "table 4 row 4 (C-A, S-A)": {**BARE, "channel": "augmented", "spatial": "fusing"},
    "table 4 row 5 (CS-A)": {**BARE, **RESTORE},
    "table 4 row 6, table 5 MSA-Net": {},
    "table 5 CBAM": {k: "cbam" for k in BARE},
    "table 5 SCA-CNN": {k: "sca" for k in BARE},
    "table 5 SE-Net": {"channel": "se", "restore_channel": "se"},
}


@pytest.mark.parametrize("row", ABLATIONS)
def test_each_row_of_tables_2_to_5_trains(row):
    torch.manual_seed(0)
    image, mask = photographs(64), holes(8, 64)
    generator = GENERATORS["msanet"](width=0.125, **ABLATIONS[row])
    found = trained(generator, lambda: objective(generator, image, mask), 10)
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


@pytest.mark.parametrize(
    ("name", "options"),
    [("msanet", {}), ("musical", {"order": "paper"}), ("musical", {"order": "released"})],
)
def test_200_steps_in_bf16_stay_finite_with_masks_of_nothing_and_everything(name, options):
    torch.manual_seed(0)
    image = photographs(64)[:4]
    masks = [holes(4, 64), torch.ones(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)]
    generator = GENERATORS[name](**TINY[name], **options)
    turn = iter(range(200))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return objective(generator, image, masks[next(turn) % 3])

    found = trained(generator, step, 200)
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
