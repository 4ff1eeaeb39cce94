"""Draw MSA-Net's figures 3, 5, 7 and 9 of one of our networks.

    scales.png      fig. 3: features of the first MSAU, a column per dilation
    spatial.png     fig. 5: each scale before its spatial attention, the map, and after it
    channels.png    fig. 7: channels with the largest and the smallest weights, and all weights
    masks.png       fig. 9: the known mask as each downsampling sees it (MUM)

Attention multiplies, so its weights are its output divided by its input. This works for every kind
of attention in tables 4 and 5; `none` shows as 1 everywhere.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.masking import erase, update_known
from models.msanet import MSANet
from models.multiscale import DILATIONS
from shards import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = tuple[Tensor, str]  # an image H×W×3, a map H×W or a curve N, and the text below it
SHOWN = 6  # channels at either end of fig. 7


def draw(generator: nn.Module, images: Tensor, masks: Tensor, out: str) -> list[str]:
    """Write the four figures into the folder or URL `out`; return their URLs.

    images: float N×3×H×W in [0, 1]; masks: N×1×H×W, 1 = hole; each gets a row of every figure.
    Raises ValueError for a generator other than MSA-Net.
    """
    if not isinstance(generator, MSANet):
        raise ValueError("features= draws the figures of MSA-Net: give checkpoint= of an MSA-Net")
    features = first_block(generator, images, masks)
    erased = [(image.permute(1, 2, 0).cpu(), "") for image in erase(images, masks).clamp(0, 1)]
    figures = {
        "scales": scales(features, erased),
        "spatial": spatial(features, erased),
        "channels": channels(features, erased),
        "masks": known_masks(generator, masks, erased),
    }
    urls = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        urls.append(store.join(out, f"{name}.png"))
        store.write(urls[-1], buffer.getvalue())
    return urls


@torch.no_grad()
def first_block(generator: MSANet, images: Tensor, masks: Tensor) -> dict[str, Any]:
    """Return the features of the first MSAU, on the CPU, each N×C×h×w.

    `before` and `after`: of the spatial attention of every scale; `joined` and `attended`: before
    and after the channel attention.
    """
    block: Any = generator.group[0].scales
    passed = []  # through each attention: its input and its output

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passed.append((inputs[0].float().cpu(), output.float().cpu()))

    with ExitStack() as stack:
        for watched in (*block.spatial, block.channel):
            stack.callback(watched.register_forward_hook(keep).remove)
        generator(erase(images, masks), masks)
    *spatial, (joined, attended) = passed
    before, after = zip(*spatial)
    return {"before": before, "after": after, "joined": joined, "attended": attended}


def attention(before: Tensor, after: Tensor, dim: int) -> Tensor:
    """Return the weights of an attention, read where its input is strongest along `dim`.

    Of a spatial attention N×C×H×W over the channels: N×H×W; of a channel attention N×C×HW over the
    pixels: N×C. NaN where the input is 0 all along `dim`.
    """
    place = before.abs().argmax(dim, keepdim=True)
    strongest, attended = (values.gather(dim, place).squeeze(dim) for values in (before, after))
    return torch.where(strongest == 0, torch.nan, attended / strongest)


def scales(features: dict[str, Any], erased: list[Panel]) -> Figure:
    """Draw the mean magnitude of the features of each scale (fig. 3)."""
    rows = [
        [image, *(_map(scale[i].abs().mean(0)) for scale in features["before"])]
        for i, image in enumerate(erased)
    ]
    return _grid(["erased", *_scale_names(features)], rows)


def spatial(features: dict[str, Any], erased: list[Panel]) -> Figure:
    """Draw each scale before and after its spatial attention, with the attention map (fig. 5)."""
    rows = []
    for i, (image, _) in enumerate(erased):
        names = _scale_names(features)
        for name, before, after in zip(names, features["before"], features["after"]):
            weights = attention(before, after, 1)[i]
            maps = (before[i].abs().mean(0), weights, after[i].abs().mean(0))
            rows.append([(image, name), *map(_map, maps)])
    return _grid(["erased", "before", "attention", "after"], rows)


def channels(features: dict[str, Any], erased: list[Panel]) -> Figure:
    """Draw the channels with the largest and smallest attention weights (fig. 7)."""
    rows = []
    joined, attended = features["joined"], features["attended"]
    for i, weights in enumerate(attention(joined.flatten(2), attended.flatten(2), 2)):
        weights = torch.nan_to_num(weights, nan=0.0)
        order = weights.argsort(descending=True)
        ends = [*order[:SHOWN].tolist(), *order[-SHOWN:].tolist()]
        maps = [(joined[i, c].abs(), f"weight {weights[c]:.3f}") for c in ends]
        rows.append([erased[i], *maps, (weights[order], "channel, by weight")])
    largest = [f"largest {k + 1}" for k in range(SHOWN)]
    smallest = [f"smallest {k}" for k in range(SHOWN, 0, -1)]
    return _grid(["erased", *largest, *smallest, "all weights"], rows)


def known_masks(generator: MSANet, masks: Tensor, erased: list[Panel]) -> Figure:
    """Draw the mask of known pixels at every level (fig. 9)."""
    levels = [1 - masks]
    for _ in range(len(generator.extract) + len(generator.group)):
        levels.append(update_known(levels[-1]) if generator.mask_update else levels[-1])
    heads = [f"known, {level.shape[-2]}×{level.shape[-1]}" for level in levels]
    rows = [
        [image, *((level[i, 0, ..., None].expand(-1, -1, 3).cpu(), "") for level in levels)]
        for i, image in enumerate(erased)
    ]
    return _grid(["erased", *heads], rows)


def _scale_names(features: dict[str, Any]) -> list[str]:
    """Name the scales; the structures of tables 1 and 2 have plain branches instead."""
    count = len(features["before"])
    return [f"dilation {DILATIONS[i]}" if count == 4 else f"branch {i + 1}" for i in range(count)]


def _map(values: Tensor) -> Panel:
    """Give a map the range of its colors as text."""
    known = values[values.isfinite()]
    return values, f"{known.min():.2g} to {known.max():.2g}" if len(known) else "no values"


def _grid(heads: list[str], rows: list[list[Panel]]) -> Figure:
    """Arrange panels in rows below their headings.

    A map is colored from its smallest to its largest value, gray where it has none.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["viridis"].with_extremes(bad="gray")
    size = (1.5 * len(heads), 1.75 * len(rows) + 0.2)
    figure = Figure(figsize=size, layout="constrained", facecolor="0.94")
    grid = figure.subplots(len(rows), len(heads), squeeze=False)
    for axis, head in zip(grid[0], heads):
        axis.set_title(head, fontsize=9)
    for axes, row in zip(grid, rows):
        for axis, (values, text) in zip(axes, row):
            axis.set_xlabel(text, fontsize=8)
            if values.ndim == 1:
                axis.plot(values.numpy())
                axis.set_ylim(bottom=0)
                axis.set_box_aspect(1)
                axis.tick_params(labelsize=7)
            else:
                axis.imshow(values.numpy(), cmap=colors, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
    return figure
