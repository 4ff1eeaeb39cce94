"""What GLC, DeepFill and GMCNN share: the rule of `models.columns` for sides, and local judges."""

from collections.abc import Sequence

LOCAL = ("crop", "masked")  # a crop of half the side around the hole, or the masked image


def column_sides(kernel: int, dilations: Sequence[int]) -> tuple[int, int]:
    """Return what divides the sides of images, and their least.

    The map, a quarter of the image, reaches beyond the widest convolution.
    """
    return 4, 4 * (max([1, *dilations]) * (kernel // 2) + 1)
