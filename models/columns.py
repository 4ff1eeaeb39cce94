"""The encoder that GLC, CA and GMCNN share: two halvings, then dilations in place of more."""

from collections.abc import Callable, Sequence

from torch import nn

STRIDES = (1, 2, 1, 2, 1, 1)
DILATIONS = (2, 4, 8, 16)
Layer = Callable[[int, int, int, int, int], nn.Module]


def column(
    layer: Layer,
    channels: int,
    widths: Sequence[int],
    kernel: int,
    dilations: Sequence[int] = DILATIONS,
    first: int | None = None,
) -> nn.Sequential:
    """N×channels×H×W → N×widths[-1]×H/4×W/4.

    layer: makes a layer of (in channels, out channels, kernel, stride, dilation).
    widths: of the six layers up to the dilated ones, which keep the last.
    first: kernel of the first layer, if another.
    """
    rows = [(width, stride, 1) for width, stride in zip(widths, STRIDES, strict=True)]
    rows += [(widths[-1], 1, dilation) for dilation in (*dilations, 1, 1)]
    layers: list[nn.Module] = []
    for i, (width, stride, dilation) in enumerate(rows):
        k = first if first and i == 0 else kernel
        layers.append(layer(channels, width, k, stride, dilation))
        channels = width
    return nn.Sequential(*layers)


def smallest_image(kernel: int, dilations: Sequence[int]) -> int:
    """Side of the image whose map, a quarter of it, reaches beyond the widest convolution."""
    return 4 * (max([1, *dilations]) * (kernel // 2) + 1)
