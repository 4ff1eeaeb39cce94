import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import nn

from models.contextual_attention import contextual_attention
from models.deepfill import DeepFill, critics


def small():
    torch.manual_seed(0)
    return DeepFill(width=1 / 16)


def pair(n=2, size=80):
    generator = torch.Generator().manual_seed(n)
    image, mask = torch.rand(n, 3, size, size, generator=generator), torch.zeros(n, 1, size, size)
    for i in range(n):
        mask[i, :, 20 : 50 + 4 * i, 30 - 8 * i : 60] = 1
    return image, mask


def weights(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_sizes_of_their_layer_tables():
    with torch.device("meta"):
        generator = DeepFill()
        assert weights(generator) == 3_601_542 and weights(generator.coarse) == 1_448_227
        assert weights(critics()) == 7_072_770


def layered(generator, image, mask):
    """The layer table, convolution by convolution; returns the coarse and the refined image."""
    convolutions = (m for m in generator.modules() if isinstance(m, nn.Conv2d))
    widths = []

    def conv(x, kernel=3, stride=1, dilation=1, act=F.elu):
        layer = next(convolutions)
        assert layer.kernel_size == (kernel, kernel)
        widths.append(layer.out_channels * 16 if layer.out_channels > 4 else "least")
        x = F.conv2d(x, layer.weight, layer.bias, stride, dilation * (kernel // 2), dilation)
        return act(x)

    def encode(x, last=F.elu):
        x = conv(conv(conv(conv(x, 5), 3, 2), 3), 3, 2)
        return conv(conv(x), act=last)

    def dilate(x):
        for dilation in (2, 4, 8, 16):
            x = conv(x, 3, 1, dilation)
        return x

    def decode(x):
        x = conv(conv(x))
        for _ in range(2):
            x = conv(conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        return conv(x, act=lambda y: y.clamp(-1, 1))

    known = (2 * image - 1) * (1 - mask)
    coarse = decode(dilate(encode(torch.cat((known, torch.ones_like(mask), mask), 1))))
    x = torch.cat((coarse * mask + known * (1 - mask), torch.ones_like(mask), mask), 1)
    branch = dilate(encode(x))
    attend = encode(x, F.relu)
    holes = (F.avg_pool2d(mask, 8) > 0).float()
    (attend,) = contextual_attention(attend, holes, (3,), order="yu", blend="none")
    refined = decode(torch.cat((branch, conv(conv(attend))), 1))
    assert next(convolutions, None) is None
    return coarse, refined


def test_the_network_is_its_layer_table():
    generator, (image, mask) = small().eval(), pair()
    with torch.no_grad():
        found = generator(image, mask)
        coarse, refined = layered(generator, image, mask)
    torch.testing.assert_close(found.features["coarse"] * 2 - 1, coarse, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.image * 2 - 1, refined, rtol=1e-4, atol=1e-5)
    assert refined.std() > 1e-3


def test_the_first_layers_learn_from_the_refined_image():
    torch.manual_seed(0)
    generator, (_, mask) = DeepFill(width=0.25), pair()
    image = torch.from_numpy(data.astronaut()[:160:2, :160:2] / 255).permute(2, 0, 1)[None].float()
    image = image.expand(2, -1, -1, -1)
    first = generator.coarse[0][0].weight
    prediction = generator(image, mask)
    both = [(x - image).abs().mean() for x in (prediction.image, prediction.features["coarse"])]
    gradients = [torch.autograd.grad(x, first, retain_graph=True)[0] for x in both]
    refined, whole = gradients[0], gradients[0] + gradients[1]
    assert refined.abs().max() > 1e-8
    assert 1e-4 < whole.square().mean().sqrt() < 1e-1  # drawn from N(0, 0.02): about 1e-12


def test_the_output_does_not_change_when_hole_pixels_change():
    generator, (image, mask) = small(), pair()
    other = torch.where(mask.bool(), torch.rand_like(image), image)
    with torch.no_grad():
        one, two = generator(image, mask), generator(other, mask)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.features["coarse"], two.features["coarse"])


def test_each_image_of_a_batch_is_filled_as_if_alone():
    generator, (image, mask) = small(), pair(3)
    mask[1] = 0
    with torch.no_grad():
        together = generator(image, mask).image
        for i in range(3):
            alone = generator(image[i : i + 1], mask[i : i + 1]).image
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything_give_finite_images_and_gradients(value):
    generator = small()
    generator(pair()[0], torch.full((2, 1, 80, 80), value)).image.sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("local", ["crop", "masked"])
def test_the_critics_judge_the_image_and_the_hole(local):
    judges, (image, mask) = critics(96, 1 / 16, local), pair(2, 96)
    logits, _ = judges(image, mask)
    assert logits.shape == (2, 2)
    # What the local critic sees of a far corner: the global one alone answers to it.
    other = image.clone()
    other[:, :, 90:, :6] = 0
    if local == "crop":
        changed = (judges(other, mask)[0] != logits).any(0)
        assert changed.tolist() == [True, False]


@pytest.mark.parametrize("size", [64, 76])
def test_a_size_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 8, at least 72×72"):
        small()(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))
