import pytest
import torch
from torch import nn

from models.msanet import MSAU
from models.multiscale import MultiScale


def structure(name, channels=128, scale=48, channel="none", spatial="none", reduce=False):
    return MultiScale(channels, scale, name, channel, spatial, "batch", "sigmoid", "full", reduce)


def unit(name, reduce=False):
    options = {"channel": "none", "spatial": "none", "gate": "sigmoid", "squeeze": "full"}
    return MSAU(64, 128, 48, True, "batch", structure=name, reduce=reduce, **options)


def weights(module):
    return sum(c.weight.numel() for c in module.modules() if isinstance(c, nn.Conv2d))


# MSA-Net, table 1: 221K; 240K and 338K with its reduction; 268K and 326K with its reduction.
@pytest.mark.parametrize(
    ("name", "multi_scale", "total"),
    [
        ("msau", 221_184, 221_184),
        ("single", 221_184, 221_184),
        ("inception_v1", 240_128, 338_432),
        ("inception_v3", 268_032, 326_400),
    ],
)
def test_the_weights_of_each_structure_are_those_of_table_1(name, multi_scale, total):
    """Inception's reduction is the unit's aggregation; before, it was one more."""
    now, before = unit(name), unit(name, reduce=True)
    assert weights(now.scales) == weights(before.scales.branches) == multi_scale
    assert weights(before.scales) == total
    if name.startswith("inception"):
        assert weights(now.scales) + weights(now.aggregate) == total
        assert weights(before) - weights(now) == 192 * 192  # the second 1x1 in a row
    assert now.aggregate[0].kernel_size == (1, 1) and now.aggregate[0].out_channels == 192


@pytest.mark.parametrize(("name", "maps"), [("inception_v1", 512), ("inception_v3", 304)])
def test_inception_concatenates_as_many_maps_as_table_1_prints(name, maps):
    assert unit(name).aggregate[0].in_channels == maps
    assert structure(name, reduce=True).reduce[0].in_channels == maps


@pytest.mark.parametrize("name", ["msau", "single", "inception_v1", "inception_v3"])
def test_every_structure_gives_four_scales_of_maps_at_its_input_size(name):
    module = structure(name, 32, 12, channel="augmented", spatial="fusing", reduce=True)
    assert module(torch.rand(2, 32, 10, 14)).shape == (2, 48, 10, 14)


def test_the_four_scales_see_dilations_1_2_4_and_8():
    module = structure("msau", 4, 4).eval()
    impulse = torch.zeros(1, 4, 33, 33)
    impulse[..., 16, 16] = 1
    for branch, dilation in zip(module.branches, (1, 2, 4, 8)):
        nn.init.ones_(branch[0].weight)
        rows, columns = branch(impulse)[0, 0].nonzero(as_tuple=True)
        reach = {16 - dilation, 16, 16 + dilation}
        assert set(rows.tolist()) == reach and set(columns.tolist()) == reach


def test_an_unknown_structure_is_refused_with_the_list():
    with pytest.raises(ValueError, match="inception_v1, inception_v3"):
        structure("inception")
