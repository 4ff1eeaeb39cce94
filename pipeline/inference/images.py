"""Read any user's image as RGB pixels, and write it with its alpha and metadata.

Conversions on reading: EXIF orientation is applied; images of more bits are read in 8; gray and
palette images become RGB, and gray ones are written as gray; CMYK becomes sRGB by its profile, if
it has one. Other profiles are not applied but embedded again on writing, so that known pixels stay
bit-identical. Alpha is kept apart from the pixels. Only the first frame of an animation is read.
EXIF, XMP, profile, resolution and PNG text are written again where the format has a place for them,
and a JPEG with its own quality.
"""

import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from shards import store
from shards.formats import IMAGES, MAX_BYTES, SUFFIXES, suffix
from shards.mask_file import read_hole
from shards.metadata import open_image, to_8_bits, to_srgb, turn_upright

MAX_PIXELS = 64_000_000
READ = {*IMAGES, ".avif"} & Image.registered_extensions().keys()
METADATA = ("exif", "xmp", "icc_profile", "dpi", "text", "qtables", "subsampling")
XMP = "XML:com.adobe.xmp"  # its name among the texts of a PNG
LONGEST = 65_000  # bytes of EXIF or XMP in a JPEG
OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},  # of an image that was none
    "WEBP": {"lossless": True, "exact": True},
}


@dataclass(frozen=True)
class ImageFile:
    pixels: NDArray[np.uint8]  # H×W×3, RGB
    alpha: NDArray[np.uint8] | None = None  # H×W, 0 = transparent
    gray: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)  # as Pillow names it

    def filled(self, pixels: NDArray[np.uint8]) -> "ImageFile":
        """Return the image with other pixels, gray if it is."""
        if self.gray:
            pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
        return replace(self, pixels=pixels)


def read_bytes(url: str) -> bytes:
    try:
        if (size := store.size(url)) > MAX_BYTES:
            raise ValueError(f"{store.display(url)} has {size} bytes: too large to be an image")
        return store.read(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{store.display(url)}: no such image file") from error


def read(url: str) -> ImageFile:
    """Read the image at `url`. ValueError if it is missing, not an image, damaged or too large."""
    return decode(read_bytes(url), store.display(url))


def decode(data: bytes, name: str = "image") -> ImageFile:
    """Decode an image file's bytes; errors refer to it as `name`."""
    image = _opened(data, name)
    try:
        return _rgb(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def decode_mask(data: bytes, name: str) -> NDArray[np.bool_]:
    """Decode a mask's bytes to its hole, H×W, as `shards.mask_file` reads it."""
    image = _opened(data, name)
    try:
        return read_hole(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _opened(data: bytes, name: str) -> Image.Image:
    """Return the decoded image, upright."""
    try:
        with open_image(data) as file:
            if file.width * file.height <= MAX_PIXELS:
                image = turn_upright(file)
                texts = getattr(file, "text", {})  # in `info` without the orientation
                image.info["text"] = {k: image.info.get(k, v) for k, v in texts.items()}
                if isinstance(file, JpegImagePlugin.JpegImageFile):
                    image.info["qtables"] = list(file.quantization.values())
                    image.info["subsampling"] = max(0, JpegImagePlugin.get_sampling(file))
                return image
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as an image: give a PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error})") from error
    raise ValueError(
        f"{name} is {file.width}×{file.height}: images may have at most "
        f"{MAX_PIXELS // 1_000_000} megapixels; scale it down"
    )


def _rgb(image: Image.Image) -> ImageFile:
    metadata = {name: image.info[name] for name in METADATA if image.info.get(name) is not None}
    if not all(1 < dots < 65536 for dots in metadata.get("dpi", ())):
        del metadata["dpi"]
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    alpha = None
    image = to_8_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    elif image.mode == "CMYK" and (profile := metadata.pop("icc_profile", None)):
        image = to_srgb(image, profile)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return ImageFile(pixels, alpha, gray, metadata)


def encode(image: ImageFile, kind: str = "PNG") -> bytes:
    """Encode as PNG, WEBP (lossless) or JPEG (as it was, else quality 95, no subsampling)."""
    file = Image.fromarray(image.pixels)
    if image.alpha is not None:
        file.putalpha(Image.fromarray(image.alpha))
        if kind == "JPEG":  # on white, as `shard` does
            white = Image.new("RGBA", file.size, "white")
            file = Image.alpha_composite(white, file).convert("RGB")
    if image.gray and kind != "WEBP":
        file = file.convert("LA" if file.mode == "RGBA" else "L")
    options = OPTIONS[kind] | image.metadata
    text, xmp = options.pop("text", {}), options.get("xmp")
    if kind == "PNG":
        options["pnginfo"] = chunks = PngInfo()
        packet = {XMP: xmp.decode(errors="replace")} if xmp else {}
        for name, value in {**text, **packet}.items():
            chunks.add_itxt(name, value) if name == XMP else chunks.add_text(name, value)
    elif kind == "JPEG":
        options = {k: v for k, v in options.items() if k not in ("exif", "xmp") or len(v) < LONGEST}
        if "qtables" in options:
            del options["quality"]
    elif image.gray:
        options.pop("icc_profile", None)  # a gray profile; WEBP has RGB alone
    buffer = io.BytesIO()
    file.save(buffer, kind, **options)
    return buffer.getvalue()


def write(url: str, image: ImageFile) -> None:
    """Write the image to `url` atomically, in the format of its extension, one of SUFFIXES.

    ValueError if the format cannot hold the image.
    """
    try:
        data = encode(image, SUFFIXES[suffix(url)])
    except (OSError, ValueError) as error:
        raise ValueError(f"{store.display(url)} cannot be written: {error}") from error
    store.write(url, data)


def mask_image(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw white where the mask is 1: H×W or H×W×1 of 0 and 1 to uint8 H×W×3."""
    return np.repeat(mask.reshape(*mask.shape[:2], 1) * 255, 3, 2).astype(np.uint8)


def strip(*panels: NDArray[np.uint8], gap: int = 4) -> NDArray[np.uint8]:
    """Place panels of equal height (H×W×3 images, H×W masks) next to each other on white."""
    bar = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    row: list[NDArray[np.uint8]] = []
    for panel in panels:
        row += [bar, panel if panel.ndim == 3 else mask_image(panel)]
    return np.concatenate(row[1:], 1)
