"""What MSA-Net's figures 3, 5, 7 and 9 draw, of our own networks, as pictures.

    scales.png      fig. 3: features of the first MSAU, a column for each dilation
    spatial.png     fig. 5: each scale before its spatial attention, the map, and after it
    channels.png    fig. 7: maps with the largest and the smallest channel weights, the weights
    masks.png       fig. 9: the known mask as each downsampling sees it (MUM)

Attention multiplies, so its weights are read off as output over input: every kind of tables 4 and
5 can be looked into, and `none` shows as 1 everywhere.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.masking import erase, update_known
from models.msanet import MSANet
from models.multiscale import DILATIONS
from pipeline.inference.images import ImageFile, write
from shards import store

Bytes = NDArray[np.uint8]
SIDE, GAP, HEAD = 160, 4, 18  # pixels: a panel, between panels, its caption
SHOWN = 6  # channels at either end of fig. 7


def draw(generator: nn.Module, images: Tensor, masks: Tensor, out: str) -> list[str]:
    """Write the four pictures into the folder or URL `out`; their URLs.

    images: float N×3×H×W in [0, 1]; masks: N×1×H×W, 1 = hole; a row of each picture for each.
    ValueError for a generator that is no MSA-Net.
    """
    if not isinstance(generator, MSANet):
        raise ValueError("features= draws what MSA-Net's figures show: give checkpoint= of one")
    seen = look(generator, images, masks)
    erased = [_bytes(picture) for picture in erase(images, masks)]
    pages = {
        "scales": _scales(seen, erased),
        "spatial": _spatial(seen, erased),
        "channels": _channels(seen, erased),
        "masks": _masks(generator, masks, erased),
    }
    urls = []
    for name, page in pages.items():
        urls.append(store.join(out, f"{name}.png"))
        write(urls[-1], ImageFile(page))
    return urls


@torch.no_grad()
def look(generator: MSANet, images: Tensor, masks: Tensor) -> dict[str, Any]:
    """Inside the first MSAU, on the CPU: `before` and `after` spatial attention of every scale and
    `joined` before, `attended` after channel attention, each N×C×h×w."""
    scales: Any = generator.group[0].scales
    seen: dict[str, Any] = {"before": [], "after": []}

    def keep_pair(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        seen["before"].append(given[0].float().cpu())
        seen["after"].append(found.float().cpu())

    def keep_channel(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        seen["joined"], seen["attended"] = given[0].float().cpu(), found.float().cpu()

    with ExitStack() as stack:
        for attend in scales.spatial:
            stack.callback(attend.register_forward_hook(keep_pair).remove)
        stack.callback(scales.channel.register_forward_hook(keep_channel).remove)
        generator(erase(images, masks), masks)
    return seen


def spatial_map(before: Tensor, after: Tensor) -> Tensor:
    """Weights N×H×W of a spatial attention, read where a pixel's strongest channel is; NaN where
    every channel is 0."""
    place = before.abs().argmax(1, keepdim=True)
    strongest = before.gather(1, place)[:, 0]
    weights = after.gather(1, place)[:, 0] / strongest
    return torch.where(strongest == 0, torch.nan, weights)


def channel_weights(joined: Tensor, attended: Tensor) -> Tensor:
    """Weights N×C of a channel attention, read at each channel's strongest pixel; NaN where all
    of a channel is 0."""
    flat = joined.flatten(2)
    place = flat.abs().argmax(2, keepdim=True)
    strongest = flat.gather(2, place)[..., 0]
    weights = attended.flatten(2).gather(2, place)[..., 0] / strongest
    return torch.where(strongest == 0, torch.nan, weights)


def _scales(seen: dict[str, Any], erased: list[Bytes]) -> Bytes:
    rows = [
        [erased[i], *(_heat(scale[i].abs().mean(0)) for scale in seen["before"])]
        for i in range(len(erased))
    ]
    return _page(["erased", *_names(seen)], rows)


def _names(seen: dict[str, Any]) -> list[str]:
    """Of the scales; of plain branches for the structures of tables 1 and 2."""
    count = len(seen["before"])
    return [f"dilation {DILATIONS[i]}" if count == 4 else f"branch {i + 1}" for i in range(count)]


def _spatial(seen: dict[str, Any], erased: list[Bytes]) -> Bytes:
    rows = []
    for i, picture in enumerate(erased):
        for name, before, after in zip(_names(seen), seen["before"], seen["after"]):
            weights = spatial_map(before, after)[i]
            panels = (before[i].abs().mean(0), weights, after[i].abs().mean(0))
            rows.append([_told(picture, name), *(_heat(panel) for panel in panels)])
    return _page(["erased", "before", "attention", "after"], rows)


def _channels(seen: dict[str, Any], erased: list[Bytes]) -> Bytes:
    rows, heads = [], ["erased"]
    weights = channel_weights(seen["joined"], seen["attended"])
    for i, picture in enumerate(erased):
        known = torch.nan_to_num(weights[i], nan=0.0)
        order = known.argsort(descending=True).tolist()
        shown = [*order[:SHOWN], *order[-SHOWN:]]
        panels = [_heat(seen["joined"][i, channel].abs()) for channel in shown]
        told = [_told(panel, f"{known[c]:.3f}") for panel, c in zip(panels, shown)]
        rows.append([picture, *told, _bars(known[order])])
    heads += [f"largest {k + 1}" for k in range(SHOWN)]
    heads += [f"smallest {k}" for k in range(SHOWN, 0, -1)]
    return _page([*heads, "all weights"], rows)


def _masks(generator: MSANet, masks: Tensor, erased: list[Bytes]) -> Bytes:
    levels = [1 - masks]
    for _ in range(len(generator.extract) + len(generator.group)):
        levels.append(update_known(levels[-1]) if generator.mask_update else levels[-1])
    heads = [f"known, {level.shape[-2]}×{level.shape[-1]}".replace("×", "x") for level in levels]
    rows = [
        [erased[i], *(_bytes(level[i].expand(3, -1, -1)) for level in levels)]
        for i in range(len(erased))
    ]
    return _page(["erased", *heads], rows)


def _bytes(picture: Tensor) -> Bytes:
    """Float 3×H×W in [0, 1] → uint8 H×W×3."""
    scaled = (picture.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    found: Bytes = scaled.cpu().numpy()
    return found


def _heat(values: Tensor) -> Bytes:
    """A map in colour, from its smallest to its largest value; grey where it has none."""
    array = values.numpy()
    known = np.isfinite(array)
    low = float(array[known].min()) if known.any() else 0.0
    high = float(array[known].max()) if known.any() else 1.0
    scaled = np.where(known, (array - low) / max(high - low, 1e-12), 0) * 255
    colour = cv2.applyColorMap(scaled.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.where(known[..., None], colour, np.uint8(128)).astype(np.uint8)


def _bars(weights: Tensor) -> Bytes:
    """Weights, sorted, as a curve from 0 to the largest."""
    panel = np.full((SIDE, SIDE, 3), 255, np.uint8)
    tops = (1 - weights / weights.max().clamp(min=1e-12)) * (SIDE - 1)
    xs = np.linspace(0, SIDE - 1, len(weights))
    points = np.stack([xs, tops.numpy()], 1).round().astype(np.int32)
    cv2.polylines(panel, [points], False, (11, 110, 79), 2, cv2.LINE_AA)
    return _told(panel, f"0 to {float(weights.max()):.2f}", (80, 80, 80))


def _told(panel: Bytes, text: str, colour: tuple[int, int, int] = (255, 255, 255)) -> Bytes:
    large = cv2.resize(panel, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    cv2.putText(large, text, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    return np.asarray(large, np.uint8)


def _page(heads: Sequence[str], rows: Sequence[Sequence[Bytes]]) -> Bytes:
    """Panels in rows below their heads, on light grey: masks have white at their rims."""
    height = HEAD + len(rows) * (SIDE + GAP)
    page = np.full((height, len(heads) * (SIDE + GAP), 3), 225, np.uint8)
    for column, head in enumerate(heads):
        at = (column * (SIDE + GAP) + 2, HEAD - 5)
        cv2.putText(page, head, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            top, left = HEAD + i * (SIDE + GAP), j * (SIDE + GAP)
            small = panel.shape[0] < SIDE
            way = cv2.INTER_NEAREST if small else cv2.INTER_AREA
            page[top : top + SIDE, left : left + SIDE] = cv2.resize(
                panel, (SIDE, SIDE), interpolation=way
            )
    return page
