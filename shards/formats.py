"""Image formats by the extension of the file's name."""

from pathlib import Path

from shards import store

# What is read from a dataset, and what results are written as.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_BYTES = 512 * 2**20  # of one file; far more than an image of 64 megapixels
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def suffix(url: str) -> str:
    """Return the extension in lower case, such as `.png`; empty if there is none."""
    return Path(store.name(url)).suffix.lower()
