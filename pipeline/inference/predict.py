"""`predict`: fill the masked part of an image, a folder of images, or a sharded set.

The result has the image's own size and, in a lossless format, bit-identical known pixels. With
`mask=alpha` the transparent pixels are the mask, and the result is opaque.
In a folder, files named `*_mask.*` or `*_mask000.*` (LaMa's form) are masks, never images to fill,
and so is what mask= gives. An image of a format that is not written becomes a PNG.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.console import say
from pipeline.common.inputs import place, protect
from pipeline.config.schema import PredictConfig
from pipeline.config.values import rectangle
from pipeline.inference import images, sources
from pipeline.inference.holes import fill_hole
from pipeline.inference.images import READ, ImageFile
from shards import store
from shards.formats import SUFFIXES, suffix
from shards.manifest import FILE as MANIFEST
from shards.manifest import open_manifest
from shards.mask_file import doubt
from shards.samples import ImageRecord, payload, samples
from shards.sources.files import is_litter, kind, not_taken

FOLDER = "sub-folder"
MASK = re.compile(r"_mask\d*$", re.IGNORECASE)  # the end of a mask's stem
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
    inpainter = sources.load(model=config.model, device=sources.default_device())
    result: dict[str, Any] = {"model": inpainter.name, "written": [], "strips": [], "holes": []}
    failed = []
    for task in tasks:
        try:
            image = images.decode(_bytes(task.image), _name(task.image))
            hole = read_mask(task.mask, image, _name(task.image), config.mask.invert)
            tiles = {"tile": config.tile, "overlap": config.overlap}
            try:
                filled, mask = fill_hole(inpainter, image, hole, config.mask, **tiles)
            except ValueError as error:
                raise ValueError(f"{_name(task.image)}: {error}") from error
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
    """List what is read and written, by name.

    ValueError if an input would be overwritten, or two results have one name.
    """
    if (feather := config.mask.feather) > (grow := config.mask.grow):
        say(f"predict: mask.feather={feather} has the effect of mask.grow={grow}, the larger width")
    tasks, left_out = _tasks(config)
    read = [config.image, *(task.image for task in tasks if isinstance(task.image, str))]
    masks = [config.mask.file, *(task.mask for task in tasks if isinstance(task.mask, str))]
    origins: dict[str, str] = {}
    for task in tasks:
        for url in (task.out, _strip_url(task.out))[: 1 + config.strip]:
            if (other := origins.setdefault(url, _name(task.image))) != _name(task.image):
                raise ValueError(
                    f"{store.display(url)} would be written for {other} and {_name(task.image)}: "
                    "rename one of the two"
                )
    # Of a single image, out= may be an existing folder.
    folder = [] if suffix(config.image) in READ else [config.out]
    given = {"image": read, "mask": masks, "model": [config.model]}
    protect(given, {"out": [*origins, *folder]}, below=config.recursive)
    for task in tasks:
        image, mask = task.image, task.mask
        if isinstance(image, str) and isinstance(mask, str) and place(image) == place(mask):
            raise ValueError(
                f"mask={store.display(mask)} is the image itself: give an image that is white in "
                "the hole, or mask=alpha"
            )
    if left_out:
        say(f"predict: {left_out}")
    return tasks


def _tasks(config: PredictConfig) -> tuple[list[ImageTask], str]:
    """Return what is to be filled, and a line on the files that are not."""
    mask, left_out = config.mask.file, ""
    if suffix(config.image) in READ:
        out = config.out
        if suffix(out) not in SUFFIXES:
            out = store.join(out, _result_name(store.name(config.image)))
        return [ImageTask(config.image, mask, out)], left_out
    is_set = store.exists(store.join(config.image, MANIFEST))
    found = {} if is_set else _files(config.image, config.recursive, place(mask))
    names = [n for n in found if found[n] in READ and not MASK.search(_stem(n))]
    if not names and not is_set:
        raise ValueError(
            f"image={store.display(config.image)} is neither an image ({', '.join(sorted(READ))}), "
            "nor a folder of images, nor a sharded set"
        )
    if others := Counter(form for form in found.values() if form not in READ):
        if folders := others.pop(FOLDER, 0):
            others[f"{FOLDER}{'s' * (folders > 1)} (recursive=true)"] = folders
        left_out = not_taken(others)
    if suffix(config.out) in SUFFIXES:
        raise ValueError(
            f"out={config.out} is a single image, but image= has several: set a folder"
        )
    if is_set:
        return _pairs(config), left_out
    tasks = [
        ImageTask(store.join(config.image, name), m, store.join(config.out, _result_name(name)))
        for name, m in zip(names, _masks(config, names))
    ]
    return tasks, left_out


def _pairs(config: PredictConfig) -> list[ImageTask]:
    """Pair every image of a sharded set with the next mask of a mask set, or with the one mask."""
    mask, masks = config.mask.file, list[Source]()
    if store.exists(store.join(mask, MANIFEST)):
        mask_set = open_manifest(mask, "mask=")
        masks = [record for split in sorted(mask_set.splits) for record in samples(mask_set, split)]
    records = samples(open_manifest(config.image, "image="), config.split)
    return [
        ImageTask(record, mask, store.join(config.out, f"{record.key:09d}.png"))
        for record, mask in zip(records, cycle(masks or [mask]))
    ]


def _files(
    folder: str, recursive: bool, mask: Any = None, above: tuple[Any, ...] = ()
) -> dict[str, str]:
    """Kinds of all files in a folder by relative path; a folder that is not entered ends in /.

    mask: the `place` of the file or folder whose kind is `mask`.
    """
    found, above = {}, (*above, place(folder))
    for name in store.names(folder):
        url = store.join(folder, name)
        if is_litter(os.fsencode(name)):
            continue
        if place(url) == mask:
            found[name] = "mask"
        elif not _is_folder(url):
            found[name] = kind(os.fsencode(name))
        elif recursive and place(url) not in above:  # no link to a folder around it
            inner = _files(url, recursive, mask, above)
            found |= {f"{name}/{path}": form for path, form in inner.items()}
        else:
            found[f"{name}/"] = FOLDER
    return found


def _is_folder(url: str) -> bool:
    if store.is_local(url):
        return store.local(url).is_dir()
    return not suffix(url) and bool(store.names(url))


def _result_name(name: str) -> str:
    return name if suffix(name) in SUFFIXES else f"{_stem(name)}.png"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _masks(config: PredictConfig, names: list[str]) -> Iterator[str]:
    """URL of the mask for each image of a folder: one for all, or STEM_mask.*, else STEM.*.

    In the images' own folder only STEM_mask.* is a mask. ValueError if an image has none or two.
    """
    mask = config.mask.file
    if mask == "alpha" or rectangle(mask) or suffix(mask) in READ:
        yield from [mask] * len(names)
        return
    own = place(mask) == place(config.image)
    files: dict[str, str] = {}
    for name, form in _files(mask, config.recursive).items():
        stem = MASK.sub("_mask", _stem(name))
        if form not in READ or (own and not stem.endswith("_mask")):
            continue
        if (other := files.setdefault(stem, name)) != name:
            raise ValueError(
                f"mask={store.display(mask)} has {other} and {name} for one image: keep one"
            )
    for name in names:
        file = files.get(f"{_stem(name)}_mask") or files.get(_stem(name))
        if file is None:
            raise ValueError(
                f"mask={store.display(mask)} has no mask for {name}: add {_stem(name)}_mask.png"
            )
        yield store.join(mask, file)


def _name(source: Source) -> str:
    return store.display(source) if isinstance(source, str) else f"sample {source.key}"


def _bytes(source: Source) -> bytes:
    return images.read_bytes(source) if isinstance(source, str) else payload(source)


def read_mask(mask: Source, image: ImageFile, name: str, invert: bool = False) -> NDArray[np.bool_]:
    """Return the hole, H×W, not inverted yet, of a rectangle `x,y,w,h`, of `alpha`, of an image
    file (see `shards.mask_file`), or of a mask set's record.

    ValueError if the size differs from the image's (EXIF orientation applied), or if a mask file is
    unclear. An all-black mask file is valid and means no hole.
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
        if line := doubt(holes ^ invert):
            say(f"predict: {_name(mask)}: {line} (mask.invert={str(not invert).lower()})")
    return holes


def _strip_url(out: str) -> str:
    """URL of the image that shows original, mask and result next to each other."""
    return f"{out.rsplit('.', 1)[0]}_strip.png"
