"""Erasing, compositing and checking of masks; `mask` is N×1×H×W, 1 = hole, 0 = known."""

import torch
import torch.nn.functional as F
from torch import Tensor


def erase(image: Tensor, mask: Tensor) -> Tensor:
    """Set the hole pixels of `image` (N×C×H×W) to 0, NaN too."""
    return image.masked_fill(mask.bool(), 0)


def composite(prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """mask · prediction + (1 − mask) · image, N×C×H×W.

    Selects instead of multiplying, so that known pixels are those of `image` bit for bit.
    """
    return torch.where(mask.bool(), prediction, image)


def update_known(known: Tensor, kernel: int = 3, stride: int = 2, padding: int = 1) -> Tensor:
    """MSA-Net 3.4 (MUM): the known mask (1 = known) after a convolution of that shape.

    A cell is known where the window holds at least one known pixel. Padding counts as hole.
    """
    return F.max_pool2d(known, kernel, stride, padding)


def check(image: Tensor, mask: Tensor) -> None:
    """Raise ValueError for input that the networks would silently get wrong; not for hot loops.

    image: N×3×H×W float32 in [0, 1]. mask: N×1×H×W of zeros and ones on the same device.
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.dtype != torch.float32 or not image.numel():
        raise ValueError(
            f"image is {image.dtype} of shape {tuple(image.shape)}; "
            "expected float32 of shape N×3×H×W, not empty, RGB in [0, 1]"
        )
    expected = (image.shape[0], 1, *image.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, image {tuple(image.shape)}; "
            f"expected a mask of {expected}, one per image"
        )
    if mask.device != image.device:
        raise ValueError(
            f"mask is on {mask.device}, image on {image.device}; move one to the other's device"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        low, high = mask.min().item(), mask.max().item()
        raise ValueError(
            f"mask holds values from {low:g} to {high:g} other than 0 and 1; "
            "threshold it: 1 = hole, 0 = known"
        )
    if not bool(torch.isfinite(image).all()):
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(f"image holds {bad} NaN or infinite values; give finite pixels in [0, 1]")
    low, high = image.min().item(), image.max().item()
    if low < 0 or high > 1:
        raise ValueError(
            f"image holds values from {low:g} to {high:g}; scale its pixels to [0, 1] "
            "(divide uint8 by 255)"
        )


def check_bytes(image: Tensor, mask: Tensor) -> None:
    """`check` for uint8: image N×H×W×3, mask N×H×W on the same device, any value but 0 a hole."""
    if image.ndim != 4 or image.shape[3] != 3 or not image.numel():
        raise ValueError(
            f"image is uint8 of shape {tuple(image.shape)}; expected N×H×W×3, not empty, RGB"
        )
    if mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype} for a uint8 image; expected uint8: 0 = known")
    if mask.shape != image.shape[:3] or mask.device != image.device:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} on {mask.device} does not match an image of shape "
            f"{tuple(image.shape)} on {image.device}; expected {tuple(image.shape[:3])}, one mask "
            "per image, on the same device"
        )


def check_pair(erased: Tensor, mask: Tensor, multiple: int, smallest: int) -> None:
    """Raise ValueError for a wrong shape, device or size; reads no values."""
    if torch.compiler.is_exporting():
        return
    if erased.ndim != 4 or erased.shape[1] != 3 or not erased.is_floating_point():
        raise ValueError(
            f"image is {erased.dtype} of shape {tuple(erased.shape)}; "
            "expected floats of shape N×3×H×W, RGB in [0, 1]"
        )
    expected = (erased.shape[0], 1, *erased.shape[2:])
    if tuple(mask.shape) != expected or mask.device != erased.device:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} on {mask.device} does not match an image of shape "
            f"{tuple(erased.shape)} on {erased.device}; expected {expected}, on the same device"
        )
    check_size(erased, multiple, smallest)


def check_size(x: Tensor, multiple: int, smallest: int) -> None:
    """Raise ValueError unless height and width are multiples of `multiple`, at least `smallest`.

    Skipped while exporting, where sizes are symbols.
    """
    if torch.compiler.is_exporting():
        return
    height, width = x.shape[2:]
    if height % multiple or width % multiple or height < smallest or width < smallest:
        raise ValueError(
            f"the image is {height}×{width}; expected multiples of {multiple}, at least "
            f"{smallest}×{smallest} (the reach of this network's widest convolution); "
            "crop or pad it (models.inpainter.Inpainter does, for any size)"
        )
