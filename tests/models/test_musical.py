import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from models import GENERATORS

CONF = Path(__file__).parents[2] / "conf" / "model" / "musical.yaml"


def small(**options):
    torch.manual_seed(0)
    return GENERATORS["musical"](**{"ngf": 4, **options})


def hole(n=2, size=64):
    mask = torch.zeros(n, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


# The layer table of the released code, and eq. 3 for `paper`.
@pytest.mark.parametrize(
    ("attention", "order", "parameters"),
    [
        ("none", "paper", 43_674_627),
        ("multi", "paper", 43_674_627 + 344_960),
        ("multi", "released", 43_674_627 + 459_520),
        # The authors' single scale: f and att33 into a 3×3 of 256 → 128 channels and its bias.
        ("direct", "released", 43_674_627 + 3 * 3 * 256 * 128 + 128),
    ],
)
def test_the_generator_has_the_size_of_its_layer_table(attention, order, parameters):
    with torch.device("meta"):
        generator = GENERATORS["musical"](attention=attention, order=order)
    assert sum(p.numel() for p in generator.parameters()) == parameters


def test_the_configuration_names_every_constructor_argument_with_its_default():
    """But for what checkpoints of earlier versions do not name."""
    options = yaml.safe_load(CONF.read_text())
    assert options.pop("name") == "musical" and options["renormalize"] == "copyable"
    options["renormalize"] = "all"
    parameters = inspect.signature(GENERATORS["musical"]).parameters
    assert options == {name: p.default for name, p in parameters.items()}


@pytest.mark.parametrize("order", ["paper", "released"])
def test_the_networks_output_does_not_change_when_hole_pixels_of_its_input_change(order):
    generator, mask, image = small(order=order), hole(), torch.rand(2, 3, 64, 64)
    other = torch.where(mask.bool(), torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(generator(image, mask).image, generator(other, mask).image)


def layered(weights, image, mask, attention):
    """The layer table of the released code, whose skips carry what their reader has activated."""

    def f(name, x, stride=1, padding=1, r=1):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding, r)

    def up(name, x):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, 2, 1)

    def norm(name, x):
        mean = x.mean((2, 3), keepdim=True)
        x = (x - mean) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        weight, bias = (weights[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return x * weight + bias

    def leak(x):
        return torch.where(x > 0, x, 0.2 * x)

    known = 1 - mask
    e1 = leak(f("first", torch.cat(((2 * image - 1) * known, known), 1), 2))
    e2 = leak(norm("down.0.2", f("down.0.1", e1, 2)))
    e3 = leak(norm("down.1.2", f("down.1.1", e2, 2)))
    e4 = leak(norm("down.2.2", f("down.2.1", e3, 2)))
    b1 = leak(f("flat.0.4", leak(norm("flat.0.2", f("flat.0.1", e4))), 1, 2, 2))
    b2 = leak(f("flat.1.4", leak(norm("flat.1.2", f("flat.1.1", b1))), 1, 2, 2))
    b3 = leak(f("flat.2.4", leak(norm("flat.2.2", f("flat.2.1", b2))), 1, 2, 2))
    x = f("flat.3.4", leak(f("flat.3.1", b3)), 1, 2, 2)
    for i, skip in enumerate((b3, b2, b1, e4)):
        x = norm(f"flat_up.{i}.2", f(f"flat_up.{i}.1", x.relu()))
        x = torch.cat((x, skip), 1)
    x = torch.cat((norm("up4.2", up("up4.1", x.relu())), e3), 1)
    x = norm("up3.2", up("up3.1", x.relu()))
    x = torch.cat((attention(x, mask), e2), 1)
    x = torch.cat((norm("up2.2", up("up2.1", x.relu())), e1), 1)
    return (up("last.1", x.relu()).tanh() + 1) / 2


@pytest.mark.parametrize("order", ["paper", "released"])
def test_the_network_is_its_layer_table(order):
    generator, image, mask = small(order=order), torch.rand(2, 3, 64, 80), hole(2, 80)[..., 8:72, :]
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        found = generator(image, mask).image
        expected = layered(generator.state_dict(), image, mask, generator.attend)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.05


def test_the_bottom_keeps_a_sixteenth_of_the_size_and_the_attention_sees_a_quarter():
    generator, sizes = small(), {}

    def note(name):
        return lambda _module, args, _out: sizes.__setitem__(name, tuple(args[0].shape[1:]))

    for name, module in [("bottom", generator.flat[3]), ("attention", generator.attend)]:
        module.register_forward_hook(note(name))
    prediction = generator(torch.rand(1, 3, 64, 96), torch.zeros(1, 1, 64, 96))
    assert sizes == {"bottom": (32, 4, 6), "attention": (8, 16, 24)}
    assert prediction.image.shape == (1, 3, 64, 96) and prediction.features == {}
    assert prediction.image.min() >= 0 and prediction.image.max() <= 1


@pytest.mark.parametrize(
    ("attention", "patches"),
    [("multi", [(1, 3)]), ("single", [(3,)]), ("direct", [(3,)]), ("none", [])],
)
def test_attention_at_two_scales_one_or_none(attention, patches):
    generator = small(attention=attention, order="released")
    assert [m.patches for m in generator.modules() if hasattr(m, "patches")] == patches


@pytest.mark.parametrize("renormalize", ["copyable", "all"])
def test_a_checkpoint_of_an_earlier_version_computes_what_it_did(renormalize):
    """Its options do not name `renormalize`."""
    torch.manual_seed(0)
    x, mask = torch.rand(1, 8, 16, 16), hole(1, 16)
    old, options = small().attend, {"renormalize": renormalize}
    new = small(**options).attend
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        assert torch.equal(old(x, mask), new(x, mask)) == (renormalize == "all")


def test_each_image_of_a_batch_is_filled_as_if_alone():
    generator, image = small(), torch.rand(3, 3, 64, 64)
    mask = torch.cat((hole(1), torch.zeros(1, 1, 64, 64), hole(1).roll(16, 3)))
    with torch.no_grad():
        together = generator(image, mask).image
        for i in range(3):
            alone = generator(image[i : i + 1], mask[i : i + 1]).image
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["paper", "released"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything_give_finite_images_and_gradients(order, value):
    generator = small(order=order)
    image = torch.rand(2, 3, 64, 64)
    generator(image, torch.full((2, 1, 64, 64), value)).image.sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


def test_weights_are_drawn_as_in_the_released_code():
    convolutions = [
        m for m in small(ngf=16).modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not m.bias.any() for m in convolutions)


@pytest.mark.parametrize("size", [32, 72])
def test_a_map_too_small_for_the_dilation_or_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 16, at least 48×48"):
        small()(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("options", [{"attention": "triple"}, {"order": "yu"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="choose one of"):
        small(**options)


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(1, 1, 32, 32), torch.zeros(2, 1, 64, 64), torch.zeros(1, 1, 64, 64).to("meta")],
)
def test_a_mask_of_another_size_batch_or_device_is_refused(mask):
    with pytest.raises(ValueError, match=r"expected \(1, 1, 64, 64\), on the same device"):
        small()(torch.rand(1, 3, 64, 64), mask)
