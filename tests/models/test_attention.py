import numpy as np
import pytest
import torch
from torch import nn

from models.attention import (
    CHANNEL,
    SPATIAL,
    AugmentedChannelAttention,
    CBAMSpatial,
    FusingSpatialAttention,
    SCAChannel,
    SCASpatial,
    SqueezeExcitation,
    channel_attention,
    spatial_attention,
)


def weights(module):
    return sum(c.weight.numel() for c in module.modules() if isinstance(c, nn.Conv2d))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_fusing_spatial_attention_costs_what_fig_4_implies():
    # 9·48·24 + 9·24·12 + 9·12·1 + 9·3·1
    assert weights(FusingSpatialAttention(48)) == 13_095


def test_augmented_channel_attention_costs_what_fig_6_implies():
    # 2·9·192² + 2·192·48
    assert weights(AugmentedChannelAttention(192)) == 681_984
    # n = C/4: 9·192² + 9·192·48 + 48·48 + 48·192
    assert weights(AugmentedChannelAttention(192, squeeze="quarter")) == 426_240


def test_channel_weights_are_global_averages_plus_their_refinement():
    torch.manual_seed(0)
    attention = AugmentedChannelAttention(8, norm="none", gate="none").double()
    x = torch.rand(2, 8, 6, 6, dtype=torch.float64)
    shallow = attention.shallow(x)
    first, _, last = attention.refine
    squeezed = attention.squeeze(shallow)
    assert squeezed.shape[2:] == (3, 3)
    hidden = np.maximum(
        squeezed.mean((2, 3)).detach().numpy() @ first.weight[:, :, 0, 0].detach().numpy().T
        + first.bias.detach().numpy(),
        0,
    )
    refinement = hidden @ last.weight[:, :, 0, 0].detach().numpy().T + last.bias.detach().numpy()
    expected = shallow.mean((2, 3)).detach().numpy() + refinement  # eq. 8
    found = (attention(x) / x).mean((2, 3)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_spatial_weights_are_one_map_from_phi_then_maximum_then_mean():
    attention = FusingSpatialAttention(8, norm="none")
    with torch.no_grad():  # W_s of the center tap alone: Φ_f·0 + max·2 − mean·3 + 1
        attention.fuse.weight.zero_()
        attention.fuse.weight[0, :, 1, 1] = torch.tensor([0.0, 2.0, -3.0])
        attention.fuse.bias.fill_(1.0)
    x = torch.rand(2, 8, 5, 7)
    array = x.numpy().astype(float)
    gate = sigmoid(2 * array.max(1, keepdims=True) - 3 * array.mean(1, keepdims=True) + 1)
    np.testing.assert_allclose(attention(x).detach().numpy(), array * gate, rtol=1e-5)


def test_squeeze_excitation_is_two_dense_layers_and_a_sigmoid():
    attention = SqueezeExcitation(8)
    x = torch.rand(3, 8, 4, 5)
    first, _, last = attention.excite
    assert first.out_channels == 2
    mean = x.mean((2, 3)).numpy()
    hidden = np.maximum(
        mean @ first.weight[:, :, 0, 0].detach().numpy().T + first.bias.detach().numpy(), 0
    )
    gate = sigmoid(hidden @ last.weight[:, :, 0, 0].detach().numpy().T + last.bias.detach().numpy())
    np.testing.assert_allclose(
        attention(x).detach().numpy(), x.numpy() * gate[:, :, None, None], rtol=1e-5
    )


def test_cbam_spatial_reads_the_mean_then_the_maximum():
    attention = CBAMSpatial(8)
    with torch.no_grad():
        attention.fuse.weight.zero_()
        attention.fuse.weight[0, :, 3, 3] = torch.tensor([1.0, -2.0])
        attention.fuse.bias.zero_()
    x = torch.rand(1, 8, 9, 9)
    array = x.numpy().astype(float)
    gate = sigmoid(array.mean(1, keepdims=True) - 2 * array.max(1, keepdims=True))
    np.testing.assert_allclose(attention(x).detach().numpy(), array * gate, rtol=1e-5)


@pytest.mark.parametrize("attention", [SCAChannel(8), SCASpatial(8)])
def test_sca_weights_have_mean_one_over_what_they_weigh(attention):
    weight = attention(torch.ones(2, 8, 6, 6)).detach()
    x = torch.rand(2, 8, 6, 6)
    weight = (attention(x) / x).detach()
    axes = 1 if isinstance(attention, SCAChannel) else (2, 3)
    torch.testing.assert_close(weight.mean(axes), torch.ones_like(weight.mean(axes)))


def test_an_ungated_weight_is_the_printed_formula():
    gated = FusingSpatialAttention(4, norm="none")
    printed = FusingSpatialAttention(4, norm="none", gate="none")
    printed.load_state_dict(gated.state_dict())
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(gated(x) / x, torch.sigmoid(printed(x) / x))


@pytest.mark.parametrize("kind", CHANNEL)
def test_channel_attention_keeps_the_shape_and_weighs_whole_channels(kind):
    x = torch.rand(2, 16, 8, 6) + 0.1
    ratio = channel_attention(kind, 16, "none", "sigmoid")(x) / x
    assert ratio.shape == x.shape
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))


@pytest.mark.parametrize("kind", SPATIAL)
def test_spatial_attention_keeps_the_shape_and_weighs_all_channels_alike(kind):
    x = torch.rand(2, 16, 8, 6) + 0.1
    ratio = spatial_attention(kind, 16, "none", "sigmoid")(x) / x
    assert ratio.shape == x.shape
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
