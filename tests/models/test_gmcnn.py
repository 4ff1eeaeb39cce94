import torch
import torch.nn.functional as F

from models.gmcnn import GMCNN


def transcribed(weights, image, mask):
    """The layer table of the PyTorch release, column by column."""

    def conv(name, x, stride=1, r=1):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x = F.pad(x, (r * (weight.shape[-1] // 2),) * 4, mode="reflect")
        return F.conv2d(x, weight, bias, stride, 0, r)

    def elu(x):
        return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def bilinear(x, k):
        size = (x.shape[2] * k, x.shape[3] * k)
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    def encoded(column, x):
        rows = [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), (1, 2), (1, 4), (1, 1), (1, 1)]
        for i, (stride, r) in enumerate(rows):
            x = elu(conv(f"columns.{column}.{i}.0", x, stride, r))
        return x

    x = torch.cat(((2 * image - 1) * (1 - mask), mask), 1)
    wide = bilinear(encoded(0, x), 4)
    middle = twice(encoded(1, x))
    middle = elu(conv("columns.1.12.0", elu(conv("columns.1.11.0", middle))))
    three = twice(encoded(2, x))
    three = twice(elu(conv("columns.2.12.0", elu(conv("columns.2.11.0", three)))))
    three = elu(conv("columns.2.15.0", elu(conv("columns.2.14.0", three))))
    x = elu(conv("merge.0", torch.cat((wide, bilinear(middle, 2), three), 1)))
    return (conv("out", x).clamp(-1, 1) + 1) / 2


def test_the_network_is_its_layer_table():
    torch.manual_seed(0)
    generator = GMCNN(width=1 / 8, dilations=(2, 4))
    for name, parameter in generator.named_parameters():
        if name.endswith("bias"):  # so that none can hide
            torch.nn.init.normal_(parameter, std=0.1)
    image, mask = torch.rand(2, 3, 60, 72), (torch.rand(2, 1, 60, 72) < 0.4).float()
    with torch.no_grad():
        found = generator(image, mask).image
        expected = transcribed(generator.state_dict(), image, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.02


def test_a_narrow_network_passes_signals_on_as_the_wide_one_does():
    def spread(width):
        torch.manual_seed(0)
        generator = GMCNN(width=width, dilations=(2,))
        with torch.no_grad():
            return generator(torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)).image.std()

    assert 0.2 < spread(1 / 8) / spread(1 / 2) < 5
