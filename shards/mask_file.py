"""Read the hole of a mask image, alike in every command and in the served model.

The hole is white, or any color whose largest channel is above half of the range. The range is 1,
255 or 65535, the smallest that contains all values. In a partly transparent image, the hole is the
transparent part of a photograph, or what is painted on a layer that is too large to be the hole. An
image that leaves the choice open, such as a flat color around a transparent part, is an error.

This file and `metadata.py` are stored with registered models, so they import numpy and Pillow only.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.metadata import turn_upright

LARGEST = 0.6  # share of a hole; networks are trained on holes of up to 60 % of the image
FLAT = 0.5  # least share of a mask's two most frequent values; photographs measured up to 0.21
SECOND_COLOR = 0.002  # least share of a layer's second color; soft edges have less


def read_hole(image: Image.Image) -> NDArray[np.bool_]:
    """Return the hole of an opened image, bool H×W, upright. Raises ValueError if it is unclear."""
    image = turn_upright(image)
    opaque = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        opaque = alpha > alpha.max() / 2
        if not opaque.any():
            return np.zeros(alpha.shape, bool)  # a layer without paint
    if image.mode != "L" and not image.mode.startswith(("I", "F")):
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.asarray(image)
    levels = _levels(values.max(2) if values.ndim == 3 else values)
    if opaque is not None and not opaque.all():
        return _layer(levels, opaque)
    hole = levels > 127
    if not hole.any() and (brightest := values.max()) > 0:
        raise ValueError(
            f"the mask has no hole: its brightest pixel is {brightest}, the hole must be white "
            "(above 127 of 255; or 1, if all others are 0)"
        )
    if sum(_peaks(levels)) < FLAT:
        raise ValueError(
            "the mask looks like a photograph or is blurred (its pixels have many values): give an "
            "image that is white in the hole and black elsewhere"
        )
    return hole


def doubt(hole: NDArray[np.bool_]) -> str:
    """Return why a hole is probably wrong; empty if it looks right."""
    if (share := float(hole.mean())) <= LARGEST:
        return ""
    return (
        f"the mask covers {share:.0%} of the image, and networks are trained on holes of at most "
        f"{LARGEST:.0%}: if the hole is black in this mask, invert the mask"
    )


def _levels(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale H×W values of any type to 0 to 255."""
    top = values.max()
    full = 1 if top <= 1 else 255 if top <= 255 else 65535
    if values.dtype == np.uint8:
        return values.astype(np.uint8) * np.uint8(255 // full)
    return (values.astype(np.float32) * (255 / full)).clip(0, 255).astype(np.uint8)


def _layer(levels: NDArray[np.uint8], opaque: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the hole of a partly transparent image."""
    dark, bright = _peaks(levels[opaque])
    if dark + bright < FLAT:
        return ~opaque
    share = opaque.mean()
    if share < 1 - LARGEST and min(dark, bright) < SECOND_COLOR:
        return opaque
    raise ValueError(
        f"the mask is partly transparent, and either part could be the hole (the opaque one covers "
        f"{share:.0%}): save it without transparency, white in the hole and black elsewhere, or "
        "the reverse with mask.invert=true"
    )


def _peaks(levels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the shares of the most frequent value below 128, and of that above."""
    counts = Image.fromarray(np.atleast_2d(levels)).histogram()
    return max(counts[:128]) / levels.size, max(counts[128:]) / levels.size
