"""`predict`: fill the masked part of an image, a folder of images, or a sharded set.

The result has the image's own size and, in a lossless format, bit-identical known pixels. With
`mask=alpha` the transparent pixels are the mask, and the result is opaque.
In a folder, files named `*_mask.*` are masks, never images to fill.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.console import say
from pipeline.common.inputs import place, protect
from pipeline.config.schema import PredictConfig
from pipeline.config.values import SUFFIXES, rectangle, suffix
from pipeline.inference import images, sources
from pipeline.inference.images import ImageFile
from pipeline.inference.tiling import fill_any
from shards import store
from shards.manifest import FILE as MANIFEST
from shards.manifest import open_manifest
from shards.mask_file import doubt
from shards.samples import ImageRecord, payload, samples
from shards.sources.files import is_litter, kind, not_taken

Bytes = NDArray[np.uint8]


Source = str | ImageRecord  # a URL, or a record of a sharded set


class ImageTask(NamedTuple):
    """One image to fill. `mask` is an argument of `read_mask`."""

    image: Source
    mask: Source
    out: str


def main(config: PredictConfig) -> dict[str, Any]:
    """Fill all images. Returns `{"model", "written", "strips", "holes"}`; holes are area shares.

    In a folder, an image that cannot be read does not stop the others: all others are written, then
    ValueError names the first failure and their number.
    """
    tasks = plan(config)
    device = sources.default_device()
    inpainter = sources.load(model=config.model, device=device)
    result: dict[str, Any] = {"model": inpainter.name, "written": [], "strips": [], "holes": []}
    failed = []
    for task in tasks:
        try:
            image = images.decode(_bytes(task.image), _name(task.image))
            mask = read_mask(task.mask, image, _name(task.image))
            filled = image.filled(
                fill_any(inpainter.fill, image.pixels, mask, config.tile, config.overlap, device)
            )
            if not mask.any():
                say(f"predict: mask of {_name(task.image)} is empty; image copied unchanged")
            alpha = None if task.mask == "alpha" else image.alpha
            images.write(task.out, replace(filled, alpha=alpha))
            result["written"].append(task.out)
            result["holes"].append(float(mask.mean()))
            if config.strip:
                url = _strip_url(task.out)
                images.write(url, ImageFile(images.strip(image.pixels, mask, filled.pixels)))
                result["strips"].append(url)
        except ValueError as error:
            if len(tasks) == 1:
                raise
            say(f"predict: {error}")
            failed.append(str(error))
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(tasks)} images could not be filled (the others are written); "
            f"first error: {failed[0]}"
        )
    return result


def dry_run(config: PredictConfig) -> str:
    first, *rest = plan(config)
    more = f" and {len(rest)} more" if rest else ""
    return f"would fill {_name(first.image)} by {config.model} and write {first.out}{more}"


def show(result: dict[str, Any]) -> str:
    return "\n".join([*result["written"], *result["strips"]])


def plan(config: PredictConfig) -> list[ImageTask]:
    """List what is read and written, by name. ValueError if an input would be overwritten."""
    tasks = _tasks(config)
    read = [config.image, *(task.image for task in tasks if isinstance(task.image, str))]
    masks = [config.mask, *(task.mask for task in tasks if isinstance(task.mask, str))]
    written = [task.out for task in tasks]
    if suffix(config.image) not in SUFFIXES:
        written.append(config.out)  # the folder of the results
    if config.strip:
        written += [_strip_url(task.out) for task in tasks]
    protect({"image": read, "mask": masks, "model": [config.model]}, {"out": written})
    for task in tasks:
        image, mask = task.image, task.mask
        if isinstance(image, str) and isinstance(mask, str) and place(image) == place(mask):
            raise ValueError(
                f"mask={store.display(mask)} is the image itself: give an image that is white in "
                "the hole, or mask=alpha"
            )
    return tasks


def _tasks(config: PredictConfig) -> list[ImageTask]:
    if suffix(config.image) in SUFFIXES:
        out = config.out
        if suffix(out) not in SUFFIXES:
            out = store.join(out, store.name(config.image))
        return [ImageTask(config.image, config.mask, out)]
    is_set = store.exists(store.join(config.image, MANIFEST))
    names = [n for n in _files(config.image) if not _stem(n).lower().endswith("_mask")]
    if not names and not is_set:
        raise ValueError(
            f"image={store.display(config.image)} is neither an image ({', '.join(SUFFIXES)}), "
            "nor a folder of images, nor a sharded set"
        )
    others = Counter(
        "sub-folder" if Path(config.image, name).is_dir() else kind(name.encode())
        for name in store.names(config.image)
        if suffix(name) not in SUFFIXES and not is_litter(name.encode())
    )
    if others and not is_set:
        say(f"predict: {not_taken(others)}")
    if suffix(config.out) in SUFFIXES:
        raise ValueError(
            f"out={config.out} is a single image, but image= has several: set a folder"
        )
    if is_set:
        return _pairs(config)
    return [
        ImageTask(store.join(config.image, name), mask, store.join(config.out, name))
        for name, mask in zip(names, _masks(config.mask, config.image, names))
    ]


def _pairs(config: PredictConfig) -> list[ImageTask]:
    """Pair every image of a sharded set with the next mask of a mask set, or with the one mask."""
    masks: list[Source] = []
    if store.exists(store.join(config.mask, MANIFEST)):
        mask_set = open_manifest(config.mask)
        masks = [record for split in sorted(mask_set.splits) for record in samples(mask_set, split)]
    records = samples(open_manifest(config.image), config.split)
    return [
        ImageTask(record, mask, store.join(config.out, f"{record.key:09d}.png"))
        for record, mask in zip(records, cycle(masks or [config.mask]))
    ]


def _files(folder: str) -> list[str]:
    return [n for n in store.names(folder) if suffix(n) in SUFFIXES and not is_litter(n.encode())]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _masks(mask: str, folder: str, names: list[str]) -> Iterator[str]:
    """URL of the mask for each image of a folder: one for all, or STEM_mask.*, else STEM.*.

    In the images' own folder only STEM_mask.* is a mask.
    """
    if mask == "alpha" or rectangle(mask) or suffix(mask) in SUFFIXES:
        yield from [mask] * len(names)
        return
    files = {_stem(name): name for name in _files(mask)}
    own = place(mask) == place(folder)
    for name in names:
        file = files.get(f"{_stem(name)}_mask") or (None if own else files.get(_stem(name)))
        if file is None:
            raise ValueError(
                f"mask={store.display(mask)} has no mask for {name}: add {_stem(name)}_mask.png"
            )
        yield store.join(mask, file)


def _name(source: Source) -> str:
    return store.display(source) if isinstance(source, str) else f"sample {source.key}"


def _bytes(source: Source) -> bytes:
    return images.read_bytes(source) if isinstance(source, str) else payload(source)


def read_mask(mask: Source, image: ImageFile, name: str) -> Bytes:
    """Return uint8 H×W, 1 = hole, of a rectangle `x,y,w,h`, of `alpha`, of an image file (see
    `shards.mask_file`), or of a mask set's record.

    ValueError if the size differs from the image's (EXIF orientation applied), if no pixel is
    known, or if a mask file is unclear. An all-black mask file is valid and means no hole.
    """
    height, width = image.pixels.shape[:2]
    if mask == "alpha":
        if image.alpha is None:
            raise ValueError(f"mask=alpha, but {name} has no alpha channel")
        holes = image.alpha < 128
    elif isinstance(mask, str) and (box := rectangle(mask)):
        x, y, w, h = box
        if x + w > width or y + h > height or not w or not h:
            raise ValueError(
                f"mask={mask} (x,y,w,h) does not fit into {name}, which is {width}×{height}"
            )
        holes = np.zeros((height, width), bool)
        holes[y : y + h, x : x + w] = True
    else:
        holes = images.decode_mask(_bytes(mask), _name(mask))
        if holes.shape != (height, width):
            raise ValueError(
                f"mask {_name(mask)} is {holes.shape[1]}×{holes.shape[0]}, {name} is "
                f"{width}×{height}: use a mask of the image's size"
            )
        if line := doubt(holes):
            say(f"predict: {_name(mask)}: {line}")
    if holes.all():
        raise ValueError(f"the mask covers all of {name}: leave known pixels to fill the hole from")
    return holes.astype(np.uint8)


def _strip_url(out: str) -> str:
    """URL of the image that shows original, mask and result next to each other."""
    return f"{out.rsplit('.', 1)[0]}_strip.png"
