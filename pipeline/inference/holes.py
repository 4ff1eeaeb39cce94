"""Fill the hole of an image file: inverted, grown and with a soft edge as `mask.*` say."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.groups import HoleConfig
from pipeline.inference.images import ImageFile
from pipeline.inference.sources import LoadedInpainter, default_device
from pipeline.inference.tiling import fill_any

Bytes = NDArray[np.uint8]


def fill_hole(
    inpainter: LoadedInpainter,
    image: ImageFile,
    hole: NDArray[np.bool_],
    options: HoleConfig,
    **tiles: int,
) -> tuple[ImageFile, Bytes]:
    """Return the filled image, gray if it was, and its mask, uint8 H×W, 1 = changed.

    tiles: `tile` and `overlap` of `fill_any`. ValueError if no pixel is known.
    """
    opacity = _opacity(hole ^ options.invert, options.grow, min(options.feather, options.grow))
    mask = (opacity > 0).astype(np.uint8)
    if mask.all():
        raise ValueError("the mask covers all of the image: leave known pixels to fill it from")
    pixels = fill_any(inpainter.fill, image.pixels, mask, device=default_device(), **tiles)
    edge = mask > opacity // 255
    weight = opacity[edge, None].astype(np.float32) / 255
    pixels[edge] = np.round(weight * pixels[edge] + (1 - weight) * image.pixels[edge])
    return image.filled(pixels), mask


def _opacity(hole: NDArray[np.bool_], grow: int, feather: int) -> Bytes:
    """Return 255 in the hole, 0 beyond `grow` pixels from it, falling over the last `feather`."""
    opacity = hole * np.uint8(255)
    if grow and hole.any():
        x, y, w, h = cv2.boundingRect(opacity)
        part = slice(max(0, y - grow), y + h + grow), slice(max(0, x - grow), x + w + grow)
        away = cv2.distanceTransform(255 - opacity[part], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        soft = np.minimum(1, (grow + 1 - away) / (feather + 1))
        opacity[part] = np.where(away <= grow, np.ceil(255 * soft), 0)
    return opacity
