import pytest
import torch
import torch.nn.functional as F

from models.context_encoder import ContextEncoder, middle, overlap_l2


def transcribed(weights, image, mask):
    """The layer table; norms of a batch in training."""

    def norm(name, x):
        mean = x.mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        weight, bias = (weights[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return x * weight + bias

    color = torch.tensor([117, 104, 123])[:, None, None] / 255
    x = 2 * (image * (1 - mask) + color * mask) - 1
    layers = [int(name.split(".")[1]) for name in weights if name.startswith("encoder")]
    for i in range(max(layers) + 1):
        last = i == max(layers)
        stride, padding = (1, 0) if last else (2, 1)
        x = F.conv2d(x, weights[f"encoder.{i}.0.weight"], None, stride, padding)
        x = norm(f"encoder.{i}.1", x) if i else x
        x = torch.where(x > 0, x, 0.2 * x)
    layers = [int(name.split(".")[1]) for name in weights if name.startswith("decoder")]
    for i in range(max(layers)):
        stride, padding = (2, 1) if i else (1, 0)
        x = F.conv_transpose2d(x, weights[f"decoder.{i}.0.weight"], None, stride, padding)
        x = norm(f"decoder.{i}.1", x).relu()
    x = F.conv_transpose2d(x, weights[f"decoder.{max(layers)}.weight"], None, 2, 1)
    return (x.tanh() + 1) / 2


@pytest.mark.parametrize("output", ["whole", "center"])
def test_the_network_is_its_layer_table(output):
    torch.manual_seed(0)
    generator = ContextEncoder(width=1 / 16, levels=4, output=output)
    for parameter in generator.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    image, mask = torch.rand(3, 3, 64, 80), (torch.rand(3, 1, 64, 80) < 0.4).float()
    with torch.no_grad():
        found = generator(image, mask).image
        expected = transcribed(generator.state_dict(), image, mask)
    if output == "center":
        assert (found.sum() - middle(found).sum()) == pytest.approx(0.5 * 3 * 3 * (64 * 80) * 3 / 4)
        found = middle(found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, [64, 64, 64, 128, 256, 512, 4000, 512, 256, 128, 64, 64, 64, 3]),
        (
            {"levels": 5, "output": "center"},
            [64, 64, 128, 256, 512, 4000, 512, 256, 128, 64, 3],
        ),
    ],
)
def test_widths_are_those_of_the_layer_table(options, channels):
    with torch.device("meta"):
        generator = ContextEncoder(**options)
    layers = [m for m in generator.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    assert [layer.out_channels for layer in layers] == channels
    assert all(layer.kernel_size == (4, 4) and layer.bias is None for layer in layers)


def test_the_band_that_overlaps_the_known_image_weighs_ten_times_as_much():
    """128 pixels, of which the middle 64 are predicted around a hole of 56."""
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 128, 128)
    mask[..., 36:92, 36:92] = 1
    prediction, image = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 128, 128)
    weights = torch.full((64, 64), 10.0, dtype=torch.float64)
    weights[4:60, 4:60] = 1
    squares = (prediction.double() - image[..., 32:96, 32:96].double()) ** 2
    found = overlap_l2(prediction, middle(image), middle(mask))
    assert found.item() == pytest.approx((weights * squares).mean().item(), abs=1e-6)
    only = overlap_l2(prediction, middle(image), middle(mask), overlap=0).item()
    assert only == pytest.approx(
        (squares[..., 4:60, 4:60].sum() / squares.numel()).item(), abs=1e-6
    )


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="whole, center"):
        ContextEncoder(output="middle")
    with pytest.raises(ValueError, match="levels=3; expected at least 4"):
        ContextEncoder(levels=3)
