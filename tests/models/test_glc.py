import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.glc import GLC, completion_l2

# Rows 1 to 17: operation, kernel, stride, dilation.
ROWS = [("conv", 5, 1, 1), ("conv", 3, 2, 1), ("conv", 3, 1, 1), ("conv", 3, 2, 1)]
ROWS += [("conv", 3, 1, r) for r in (1, 1, 2, 4, 8, 16, 1, 1)]
ROWS += [("deconv", 4, 2, 1), ("conv", 3, 1, 1), ("deconv", 4, 2, 1), ("conv", 3, 1, 1)]
ROWS += [("conv", 3, 1, 1)]


def transcribed(weights, image, mask):
    """The layer table of the paper; norms of a batch in training."""
    mean = torch.tensor([0.4560, 0.4472, 0.4155])[:, None, None]
    x = torch.cat(((image - mean) * (1 - mask), mask), 1)
    names = [f"encoder.{i}" for i in range(12)] + [f"decoder.{i}" for i in range(5)]
    for (kind, kernel, stride, r), name in zip(ROWS, names, strict=True):
        layer = name if name == "decoder.4" else f"{name}.0"
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        assert weight.shape[-1] == kernel
        if kind == "conv":
            x = F.conv2d(x, weight, bias, stride, r * (kernel // 2), r)
        else:
            x = F.conv_transpose2d(x, weight, bias, stride, 1)
        if name == "decoder.4":
            break
        mean = x.mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        scale, shift = (weights[f"{name}.1.{k}"][:, None, None] for k in ("weight", "bias"))
        x = (x * scale + shift).clamp(min=0)
    return 1 / (1 + (-x).exp())


def test_the_network_is_its_layer_table():
    torch.manual_seed(0)
    generator = GLC(width=1 / 16)
    for parameter in generator.parameters():  # biases and norms too, so that none can hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    image, mask = torch.rand(2, 3, 72, 68), (torch.rand(2, 1, 72, 68) < 0.4).float()
    with torch.no_grad():
        found = generator(image, mask).image
        expected = transcribed(generator.state_dict(), image, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.02


def test_the_completion_loss_is_the_square_in_the_hole_over_pixels_or_the_hole():
    torch.manual_seed(0)
    prediction, image = torch.rand(2, 3, 6, 7), torch.rand(2, 3, 6, 7)
    mask = (torch.rand(2, 1, 6, 7) < 0.4).float()
    squares = ((prediction - image) * mask).double().numpy() ** 2
    found = completion_l2(prediction, image, mask).item()
    assert found == pytest.approx(squares.mean(), abs=1e-6)
    holes = 3 * mask.sum((1, 2, 3)).double().numpy()
    found = completion_l2(prediction, image, mask, "hole").item()
    assert found == pytest.approx(np.mean(squares.sum((1, 2, 3)) / holes), abs=1e-6)
    assert completion_l2(prediction, image, 0 * mask, "hole") == 0
    with pytest.raises(ValueError, match="all, hole"):
        completion_l2(prediction, image, mask, "known")
