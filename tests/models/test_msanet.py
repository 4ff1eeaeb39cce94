import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from models import GENERATORS
from models.layers import frozen_statistics

CONF = Path(__file__).parents[2] / "conf" / "model"


def hole(n=2, size=64):
    mask = torch.zeros(n, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


def small(**options):
    torch.manual_seed(0)
    return GENERATORS["msanet"](**{"width": 0.125, **options})


def test_the_networks_output_does_not_change_when_hole_pixels_of_its_input_change():
    generator, mask, image = small().eval(), hole(), torch.rand(2, 3, 64, 64)
    other = torch.where(mask.bool(), torch.rand_like(image), image)
    with torch.no_grad():
        one, two = generator(image, mask), generator(other, mask)
    assert torch.equal(one.image, two.image)
    assert all(torch.equal(a, b) for a, b in zip(one.features.values(), two.features.values()))


def transcribed(weights, image, mask):
    """Equations 1 to 10 one by one, without norms: the image, and the maps of eq. 12."""

    def f(name, x, stride=1, r=1):
        weight = weights[f"{name}.weight"]
        padding = r * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding, r)

    def mean(x):
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])

    def spatial(name, x):  # eq. 5-6
        phi = f(f"{name}.gradual.0.0", x).relu()
        phi = f(f"{name}.gradual.2", f(f"{name}.gradual.1.0", phi).relu())
        descriptors = torch.cat((phi, x.max(1, True).values, x.mean(1, True)), 1)
        return x * f(f"{name}.fuse", descriptors).sigmoid()

    def channel(name, x):  # eq. 7-9
        shallow = f(f"{name}.shallow.0", x).relu()
        shared = mean(f(f"{name}.squeeze.0", shallow, 2).relu())
        refined = f(f"{name}.refine.2", f(f"{name}.refine.0", shared).relu())
        return x * (mean(shallow) + refined).sigmoid()

    def down(name, x, known):  # eq. 1 and the update of 3.4
        seen = F.conv2d(known, torch.ones(1, 1, 3, 3), stride=2, padding=1) > 0
        return f(name, torch.cat((x, known), 1), 2).relu(), seen.to(x.dtype)

    known = 1 - mask
    x = f("stem.0", torch.cat(((2 * image - 1) * known, known), 1)).relu()
    x, known = down("extract.0.0", x, known)
    for unit in ("group.0", "group.1"):
        x, known = down(f"{unit}.down.0", x, known)
        scales = [
            spatial(f"{unit}.scales.spatial.{i}", f(f"{unit}.scales.branches.{i}.0", x, r=r).relu())
            for i, r in enumerate((1, 2, 4, 8))
        ]  # eq. 2-3
        x = channel(f"{unit}.scales.channel", torch.cat(scales, 1))  # eq. 4
        x = f(f"{unit}.aggregate.0", x).relu()
    maps = [x]
    for i in range(3):  # eq. 10
        name = f"restore.{i}.0"
        x = F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 1).relu()
        maps.append(x)
        x = spatial(f"attend.{i}.1", channel(f"attend.{i}.0", x))
    return (f("out", x).tanh() + 1) / 2, maps[:3]


def test_the_network_is_equations_1_to_10():
    generator, image = small(norm="none").eval(), torch.rand(2, 3, 64, 80)
    for parameter in generator.parameters():  # biases too, so that none can hide
        torch.nn.init.normal_(parameter, std=0.2)
    mask = (torch.rand(2, 1, 8, 10) < 0.4).float()
    mask = mask.repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        found = generator(image, mask)
        expected, maps = transcribed(generator.state_dict(), image, mask)
    torch.testing.assert_close(found.image, expected)
    for ours, theirs in zip(found.features.values(), maps, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found.image.std() > 0.05 and all(m.std() > 1e-3 for m in maps)


@pytest.mark.parametrize("name", ["msanet", "msanet_const"])
def test_the_configuration_names_every_constructor_argument_and_builds(name):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    cls = GENERATORS[options.pop("name")]
    assert list(options) == [p for p in inspect.signature(cls).parameters]
    defaults = {k: p.default for k, p in inspect.signature(cls).parameters.items()}
    if name == "msanet":
        plain = {k: yaml.safe_load(yaml.safe_dump(_lists(v))) for k, v in defaults.items()}
        assert options == plain
    cls(**{**options, "width": 0.1})


def _lists(value):
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(("name", "millions"), [("msanet", 8.32), ("msanet_const", 3.42)])
def test_the_full_models_have_the_size_that_their_configuration_states(name, millions):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    with torch.device("meta"):
        generator = GENERATORS[options.pop("name")](**options)
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_features_are_the_groups_output_then_the_deconvolutions():
    mask, image = hole(), torch.rand(2, 3, 64, 64)
    image, features = small(taps=4)(image, mask)
    assert image.shape == (2, 3, 64, 64) and image.min() >= 0 and image.max() <= 1
    assert [tuple(f.shape) for f in features.values()] == [
        (2, 48, 8, 8),
        (2, 24, 16, 16),
        (2, 12, 32, 32),
        (2, 8, 64, 64),
    ]
    assert list(small()(image, mask).features) == ["group", "deconv1", "deconv2"]


def test_without_mask_update_the_mask_enters_at_the_input_only():
    def mask_channels(generator):
        outs = [generator.stem[0].out_channels, *(u[0].out_channels for u in generator.extract)]
        outs += [u.out_channels for u in generator.group]
        ins = [u[0].in_channels for u in generator.extract]
        ins += [u.down[0].in_channels for u in generator.group]
        return [i - o for i, o in zip(ins, outs)]

    assert mask_channels(small()) == [1, 1, 1]
    assert mask_channels(small(mask_update=False)) == [0, 0, 0]


def test_a_second_forward_with_frozen_statistics_uses_the_batch_and_keeps_the_running_ones():
    generator, image = small(), torch.rand(2, 3, 64, 64)
    nothing = torch.zeros(2, 1, 64, 64)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    with frozen_statistics(generator), torch.no_grad():
        frozen = generator(image, nothing)
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
    assert torch.equal(frozen.image, generator(image, nothing).image)
    assert not torch.equal(generator.stem[1].running_mean, before["stem.1.running_mean"])


def test_frozen_statistics_reach_subclasses_and_are_undone():
    class Other(nn.modules.batchnorm._BatchNorm):
        def _check_input_dim(self, input):
            pass

    net = nn.Sequential(Other(3), nn.BatchNorm2d(3).eval(), nn.SyncBatchNorm(3).eval())
    x = torch.rand(4, 3, 5, 5) * 7
    with frozen_statistics(net):
        out = net(x)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    for norm in net:
        assert norm.track_running_stats and int(norm.num_batches_tracked) == 0
        assert torch.equal(norm.running_mean, torch.zeros(3))
    assert [norm.training for norm in net] == [True, False, False]


def test_a_mask_of_nothing_and_a_mask_of_everything_are_finite():
    generator = small().eval()
    image = torch.rand(2, 3, 64, 64)
    for mask in (torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)):
        assert generator(image, mask).image.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iru": (64, 32)}, "halve the image 3 times"),
        ({"channel": "fusing"}, "augmented, none, se, cbam, sca"),
        ({"norm": "layer"}, "batch, instance, none"),
        ({"taps": 5}, "choose 1 to 4"),
        ({"squeeze": "third"}, "full, half, quarter"),
        ({"gate": "tanh"}, "sigmoid, none"),
        ({"fe": ()}, "give fe one width or more"),
        ({"msau": ((128,), (256,))}, "one pair or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("size", [32, 68])
def test_a_map_too_small_for_the_dilation_or_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 8, at least 40×40"):
        small()(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("image", [torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64)])
def test_a_image_without_batch_or_colors_is_refused(image):
    with pytest.raises(ValueError, match="expected floats of shape N×3×H×W"):
        small()(image, torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(1, 1, 32, 32), torch.zeros(2, 1, 64, 64), torch.zeros(1, 1, 64, 64).to("meta")],
)
def test_a_mask_of_another_size_batch_or_device_is_refused(mask):
    with pytest.raises(ValueError, match=r"expected \(1, 1, 64, 64\), on the same device"):
        small()(torch.rand(1, 3, 64, 64), mask)
