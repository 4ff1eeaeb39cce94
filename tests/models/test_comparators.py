"""What holds for every comparator: sizes of the layer tables, masks, sizes of images, export."""

import pytest
import torch
from skimage import data
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models.context_encoder import ContextEncoder
from models.glc import GLC
from models.gmcnn import GMCNN
from models.inpainter import Inpainter, export
from models.lama import LaMa
from models.shiftnet import ShiftNet

SMALL = {
    "gmcnn": lambda: GMCNN(width=1 / 8, dilations=(2, 4)),
    "glc": lambda: GLC(width=1 / 8, dilations=(2, 4)),
    "shiftnet": lambda: ShiftNet(width=1 / 8, levels=5),
    "context_encoder": lambda: ContextEncoder(width=1 / 8, levels=4),
    "lama": lambda: LaMa(width=1 / 8, blocks=1),
    "context_encoder center": lambda: ContextEncoder(width=1 / 8, levels=4, output="center"),
}
SIZES = [(1, 64, 64), (3, 65, 41), (1, 7, 130), (2, 1, 1), (1, 40, 96)]


def build(name):
    torch.manual_seed(0)
    generator = SMALL[name]()
    for norm in generator.modules():  # statistics that are not the identity
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return generator.eval()


def pair(n=3, height=64, width=96):
    """Images with a hole of a square, of scattered blocks, and of nothing."""
    generator = torch.Generator().manual_seed(n * height + width)
    mask = torch.zeros(n, 1, height, width)
    mask[0, :, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    if n > 1:
        blocks = torch.rand(1, height // 8, width // 8, generator=generator) < 0.3
        mask[1] = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return torch.rand(n, 3, height, width, generator=generator), mask


# Weights, and 10⁹ operations for an image of that side, of the papers' and authors' layer tables.
@pytest.mark.parametrize(
    ("make", "weights", "size", "gflop"),
    [
        (GMCNN, 12_561_891, 256, 134.4),
        (GLC, 6_072_131, 256, 65.1),
        (ShiftNet, 54_938_240, 256, 13.7),
        (LaMa, 27_048_835, 256, 63.7),  # without its transforms
        (ContextEncoder, 71_321_536, 256, 2.08),
        (lambda: ContextEncoder(levels=5, output="center"), 71_124_544, 128, 0.70),
    ],
)
def test_the_generator_has_the_size_of_its_layer_table(make, weights, size, gflop):
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        generator = make().eval()
        generator(torch.zeros(1, 3, size, size), torch.zeros(1, 1, size, size))
    assert sum(p.numel() for p in generator.parameters()) == weights
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.004)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_changes_when_hole_pixels_of_the_input_change(name):
    generator, (image, mask) = build(name), pair()
    spoiled = torch.where(mask.bool(), torch.rand_like(image), image)
    spoiled[0, :, 30, 40] = torch.nan
    with torch.no_grad():
        one, two = generator(image, mask), generator(spoiled, mask)
    assert torch.equal(one.image, two.image) and one.image.isfinite().all()
    assert all(torch.equal(x, two.features[key]) for key, x in one.features.items())


@pytest.mark.parametrize("name", SMALL)
def test_each_image_of_a_batch_is_filled_as_if_alone(name):
    generator, (image, mask) = build(name), pair()
    with torch.no_grad():
        together = generator(image, mask).image
        alone = [generator(image[i : i + 1], mask[i : i + 1]).image for i in range(3)]
    assert together.shape == image.shape
    assert together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything_give_finite_images_and_gradients(name, value):
    generator, (image, _) = build(name).train(), pair(2)
    found = generator(image, torch.full((2, 1, 64, 96), value)).image
    found.square().mean().backward()
    assert found.isfinite().all()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_gives_images_in_float32_near_those_of_float32(name):
    generator, (image, mask) = build(name), pair()
    with torch.no_grad():
        expected = generator(image, mask).image
        with torch.autocast("cpu", torch.bfloat16):
            found = generator(image, mask).image
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def photograph():
    """Two crops of one photograph, 64×96."""
    crops = torch.from_numpy(data.astronaut()[::4, ::4].copy()).movedim(2, 0)[None] / 255
    return torch.cat((crops[..., :64, :96], crops[..., 64:, :96]))


@pytest.mark.parametrize("name", SMALL)
def test_the_first_layer_learns_from_a_photograph(name):
    generator, image = build(name).train(), photograph()
    (generator(image, pair(2)[1]).image - image).abs().mean().backward()
    rms = next(generator.parameters()).grad.square().mean().sqrt().item()
    assert 1e-4 < rms < 1e-1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_hole_in_a_photograph_is_learned(name):
    generator, image = build(name).train(), photograph()
    mask = pair(1)[1].expand(2, 1, 64, 96)
    optimiser, found = torch.optim.Adam(generator.parameters(), 2e-3), []
    for _ in range(40):
        loss = ((generator(image, mask).image - image).abs() * mask).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < found[0] / 2


@pytest.mark.parametrize(
    ("name", "rule", "size"),
    [
        ("gmcnn", "multiples of 4, at least 52×52", 48),
        ("gmcnn", "multiples of 4, at least 52×52", 66),
        ("glc", "multiples of 4, at least 20×20", 16),
        ("glc", "multiples of 4, at least 20×20", 66),
        ("shiftnet", "multiples of 32, at least 32×32", 80),
        ("lama", "multiples of 8, at least 16×16", 8),
        ("lama", "multiples of 8, at least 16×16", 36),
        ("context_encoder", "multiples of 16, at least 64×64", 48),
        ("context_encoder center", "multiples of 16, at least 64×64", 72),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused_with_its_rule(name, rule, size):
    generator = build(name)
    with pytest.raises(ValueError, match=rule):
        generator(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))
    side = generator.smallest
    generator(torch.rand(1, 3, side, side), torch.zeros(1, 1, side, side))


@pytest.mark.parametrize("name", SMALL)
def test_images_of_any_size_keep_their_known_pixels_and_are_filled(name):
    inpainter = Inpainter(build(name)).eval()
    image, mask = pair(2, 40, 72)
    with torch.no_grad():
        out = inpainter(image, mask)
    hole = mask.bool().expand_as(image)
    assert torch.equal(out[~hole], image[~hole])
    assert not torch.equal(out[hole], image[hole])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_exported_program_equals_eager_at_any_batch_and_size(name):
    inpainter = Inpainter(build(name)).eval()
    program = export(inpainter).module()
    for n, height, width in SIZES:
        image, some = torch.rand(n, 3, height, width), (torch.rand(n, 1, height, width) < 0.3) * 1.0
        for mask in (some, torch.ones_like(some), torch.zeros_like(some)):
            with torch.no_grad():
                torch.testing.assert_close(
                    program(image, mask), inpainter(image, mask), rtol=0, atol=1e-5
                )
