import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import color, data, feature
from torch import nn

from models.edgeconnect import EdgeConnect, EdgeGenerator, ImageGenerator, Residual


def small(**options):
    torch.manual_seed(0)
    return EdgeConnect(width=1 / 16, **options)


def pair(n=2, size=64):
    image = torch.from_numpy(data.astronaut()[: n * 80, 160:].copy()).permute(2, 0, 1) / 255
    image = torch.stack([image[:, 80 * i : 80 * i + size, :size] for i in range(n)])
    mask = torch.zeros(n, 1, size, size)
    for i in range(n):
        mask[i, :, 8 + 4 * i : 40, 16 : 48 - 8 * i] = 1
    return image, mask


@pytest.mark.parametrize(
    ("build", "weights"), [(EdgeGenerator, 10_761_089), (ImageGenerator, 10_774_595)]
)
def test_each_generator_has_the_size_of_its_layer_table(build, weights):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == weights


def layered(painter, x):
    """The layer table: convolutions in their order, with the weights that they use."""

    def norm(y):
        mean, var = y.mean((2, 3), keepdim=True), y.var((2, 3), unbiased=False, keepdim=True)
        return (y - mean) / (var + 1e-5).sqrt()

    def conv(y, reflect=0, **options):
        layer = next(layers)
        if reflect:
            y = F.pad(y, (reflect,) * 4, mode="reflect")
        apply = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
        return apply(y, layer.weight, layer.bias, **options)

    layers = (m for m in painter.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)))
    x = norm(conv(x, 3)).relu()
    for _ in range(2):
        x = norm(conv(x, stride=2, padding=1)).relu()
    for _ in range(8):
        x = x + norm(conv(norm(conv(x, 2, dilation=2)).relu(), 1))
    for _ in range(2):
        x = norm(conv(x, stride=2, padding=1)).relu()
    return conv(x, 3)


@pytest.mark.parametrize("merge", [True, False])
def test_the_networks_are_their_layer_tables_on_edges_of_scikit_image(merge):
    generator, (image, mask) = small(merge_edges=merge).eval(), pair()
    hole = mask.bool()
    edges = torch.stack(
        [
            torch.from_numpy(
                feature.canny(
                    color.rgb2gray(i.double().permute(1, 2, 0).numpy()), 2, mask=(m[0] == 0).numpy()
                )
            )[None]
            for i, m in zip(image, mask)
        ]
    ).float()
    gray = torch.from_numpy(color.rgb2gray(image.permute(0, 2, 3, 1).numpy()))[:, None]
    with torch.no_grad():
        found = generator(image * (1 - mask), mask)
        logits = layered(generator.edges, torch.cat((gray.masked_fill(hole, 1), edges, mask), 1))
        drawn = torch.where(hole, logits.sigmoid(), edges) if merge else logits.sigmoid()
        white = image.masked_fill(hole, 1)
        painted = (layered(generator.image, torch.cat((white, drawn), 1)).tanh() + 1) / 2
    torch.testing.assert_close(found.features["edge_logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features["edges"], drawn, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.image, painted, rtol=1e-4, atol=1e-5)
    assert edges.sum() > 50 and found.image.std() > 1e-3


def test_targets_are_the_edges_of_the_whole_image_and_g2_can_be_given_them():
    generator, (image, mask) = small(), pair()
    edges = generator.targets(image, mask)["edges"]
    expected = feature.canny(color.rgb2gray(image[1].double().permute(1, 2, 0).numpy()), 2)
    assert np.array_equal(edges[1, 0].numpy(), expected)
    prediction = generator(image, mask, edges)
    assert list(prediction.features) == ["edges"]
    assert torch.equal(prediction.image, generator.image(image, mask, edges))
    prediction.image.mean().backward()
    assert all(p.grad is None for p in generator.edges.parameters())
    assert all(p.grad is not None for p in generator.image.parameters())


def test_g1_learns_from_g2_through_the_edges_inside_the_hole():
    generator, (image, mask) = small(), pair()
    generator(image, mask).image.square().mean().backward()
    grads = [p.grad for p in generator.edges.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(g.any() for g in grads)


@pytest.mark.parametrize("training", [False, True])
def test_the_output_does_not_change_when_hole_pixels_change(training):
    image, mask = pair()
    other = torch.where(mask.bool(), torch.rand_like(image), image)
    with torch.no_grad():
        one, two = (small().train(training)(x, mask) for x in (image, other))
    assert torch.equal(one.image, two.image)
    assert all(torch.equal(one.features[k], two.features[k]) for k in one.features)


def test_each_image_of_a_batch_is_filled_as_if_alone():
    generator, (image, mask) = small().eval(), pair()
    with torch.no_grad():
        together = generator(image, mask).image
        for i in range(2):
            alone = generator(image[i : i + 1], mask[i : i + 1]).image
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything_give_finite_images_and_gradients(value):
    generator = small()
    image = torch.rand(2, 3, 32, 32)
    generator(image, torch.full((2, 1, 32, 32), value)).image.sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters() if p.grad is not None)


def test_spectral_norm_is_on_every_layer_of_g1_but_the_last_and_on_none_of_g2():
    generator = small()

    def limited(part):
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        return [hasattr(m, "parametrizations") for m in part.modules() if isinstance(m, kinds)]

    assert limited(generator.edges) == [True] * 21 + [False]
    assert limited(generator.image) == [False] * 22
    assert sum(isinstance(m, Residual) for m in generator.modules()) == 16


@pytest.mark.parametrize("size", [12, 66])
def test_a_size_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 4, at least 16×16"):
        small()(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))
