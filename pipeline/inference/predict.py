"""`predict`: remove what a mask covers from a picture, a folder of pictures, or a sharded set.

The result has the picture's own size and, in a lossless format, its known pixels bit for bit.
Transparent pixels can be the mask themselves (`mask=alpha`); the result is then opaque.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.common.inputs import protect
from pipeline.config.schema import PredictConfig
from pipeline.inference import images as pictures
from pipeline.inference import sources
from pipeline.inference.images import SUFFIXES, ImageFile, suffix
from pipeline.inference.tiling import fill_any
from shards import store
from shards.manifest import FILE as MANIFEST
from shards.manifest import open_manifest
from shards.samples import ImageRecord, payload, samples

Bytes = NDArray[np.uint8]


class ImageTask(NamedTuple):
    """One picture to be filled. `mask` is what `read_mask` takes, or a sample of a mask set."""

    name: str  # what errors call it
    read: Callable[[], ImageFile]
    mask: str | ImageRecord
    out: str
    image: str | None = None  # its URL; None for a sample of a set


def main(config: PredictConfig) -> dict[str, Any]:
    """Returns `{"model", "written": [...], "strips": [...], "holes": [share of each picture]}`.

    Pictures that cannot be read do not stop a folder: the others are written first, then ValueError
    names the first and the count.
    """
    jobs = plan(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = sources.load(model=config.model, device=device)
    result: dict[str, Any] = {"model": source.name, "written": [], "strips": [], "holes": []}
    failed = []
    for job in jobs:
        try:
            picture = job.read()
            mask = read_mask(job.mask, picture, job.name)
            filled = fill_any(
                source.fill, picture.pixels, mask, config.tile, config.overlap, device
            )
        except ValueError as error:
            if len(jobs) == 1:
                raise
            print(f"predict: {error}", file=sys.stderr)
            failed.append(str(error))
            continue
        if not mask.any():
            print(f"predict: the mask of {job.name} hides nothing: it stays", file=sys.stderr)
        alpha = None if job.mask == "alpha" else picture.alpha
        pictures.write(job.out, replace(picture, pixels=filled, alpha=alpha))
        result["written"].append(job.out)
        result["holes"].append(float(mask.mean()))
        if config.strip:
            result["strips"].append(_write_strip(job.out, picture.pixels, mask, filled))
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(jobs)} pictures could not be done, the others are written; "
            f"first: {failed[0]}"
        )
    return result


def dry_run(config: PredictConfig) -> str:
    jobs = plan(config)
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"would fill {jobs[0].name} by {config.model} and write {jobs[0].out}{more}"


def show(result: dict[str, Any]) -> str:
    return "\n".join([*result["written"], *result["strips"]])


def plan(config: PredictConfig) -> list[ImageTask]:
    """What is read and written, in order of names; ValueError where they do not fit together, or
    where an input would be overwritten."""
    jobs = _jobs(config)
    masks = [config.mask, *(job.mask for job in jobs if isinstance(job.mask, str))]
    written = [job.out for job in jobs]
    if suffix(config.image) not in SUFFIXES:
        written.append(config.out)  # a folder, of nothing but results
    if config.strip:
        written += [_strip_url(job.out) for job in jobs]
    images = [config.image, *(job.image for job in jobs)]
    protect({"image": images, "mask": masks, "model": [config.model]}, {"out": written})
    return jobs


def _jobs(config: PredictConfig) -> list[ImageTask]:
    if suffix(config.image) in SUFFIXES:
        out = config.out
        if suffix(out) not in SUFFIXES:
            out = store.join(out, store.name(config.image))
        return [_job(config.image, config.mask, out)]
    is_set = store.exists(store.join(config.image, MANIFEST))
    names = [n for n in store.names(config.image) if suffix(n) in SUFFIXES]
    if not names and not is_set:
        raise ValueError(
            f"image={store.display(config.image)} is neither a picture ({', '.join(SUFFIXES)}) "
            "nor a folder that holds some, nor a sharded set"
        )
    if suffix(config.out) in SUFFIXES:
        raise ValueError(f"out={config.out} is one picture, image= holds several: give a folder")
    if is_set:
        return _pairs(config)
    return [
        _job(store.join(config.image, name), mask, store.join(config.out, name))
        for name, mask in zip(names, _masks(config.mask, names))
    ]


def _job(image: str, mask: str, out: str) -> ImageTask:
    return ImageTask(store.display(image), lambda: pictures.read(image), mask, out, image)


def _pairs(config: PredictConfig) -> list[ImageTask]:
    """Every picture of a sharded set: with the next mask of a mask set, or with the one mask."""
    held: list[ImageRecord] = []
    if store.exists(store.join(config.mask, MANIFEST)):
        masks = open_manifest(config.mask)
        held = [sample for split in sorted(masks.splits) for sample in samples(masks, split)]
    jobs = []
    for i, sample in enumerate(samples(open_manifest(config.image), config.split)):
        name = f"picture {sample.key}"

        def read(sample: ImageRecord = sample, name: str = name) -> ImageFile:
            return pictures.decode(payload(sample), name)

        mask = held[i % len(held)] if held else config.mask
        jobs.append(ImageTask(name, read, mask, store.join(config.out, f"{sample.key:09d}.png")))
    return jobs


def _masks(mask: str, names: list[str]) -> Iterator[str]:
    """The mask of each picture of a folder: the same for all, or the one of its name's stem."""
    if mask == "alpha" or _rectangle(mask) or suffix(mask) in SUFFIXES:
        yield from [mask] * len(names)
        return
    held = {n.rsplit(".", 1)[0]: n for n in store.names(mask) if suffix(n) in SUFFIXES}
    for name in names:
        stem = name.rsplit(".", 1)[0]
        found = held.get(stem) or held.get(f"{stem}_mask")
        if found is None:
            raise ValueError(
                f"mask={store.display(mask)} holds neither {stem}.png nor {stem}_mask.png; it "
                "needs one for each picture"
            )
        yield store.join(mask, found)


def read_mask(mask: str | ImageRecord, picture: ImageFile, name: str) -> Bytes:
    """uint8 H×W, 1 = hole, of a rectangle `x,y,w,h`, of `alpha`, or of a picture (white: hole),
    which may be a mask set's sample.

    ValueError for another size than the picture's (EXIF orientation applied), for a mask that
    leaves nothing known, and for one with grey and no white in it (0 and 1, say). A black one is
    taken: it hides nothing.
    """
    height, width = picture.pixels.shape[:2]
    if mask == "alpha":
        if picture.alpha is None:
            raise ValueError(f"mask=alpha, but {name} has no alpha channel")
        holes = picture.alpha < 128
    elif isinstance(mask, str) and (box := _rectangle(mask)):
        x, y, w, h = box
        if x + w > width or y + h > height or not w or not h:
            raise ValueError(f"mask={mask} (x,y,w,h) does not lie inside {name}, {width}×{height}")
        holes = np.zeros((height, width), bool)
        holes[y : y + h, x : x + w] = True
    else:
        if isinstance(mask, ImageRecord):
            shown = f"{mask.key} of the set"
            read = pictures.decode(payload(mask), shown).pixels
        else:
            shown = store.display(mask)
            read = pictures.read(mask).pixels
        if read.shape[:2] != (height, width):
            raise ValueError(
                f"mask {shown} is {read.shape[1]}×{read.shape[0]}, {name} "
                f"{width}×{height}: give a mask of the picture's own size"
            )
        holes = read.max(2) > 127
        if not holes.any() and (brightest := int(read.max())):
            raise ValueError(
                f"mask {shown} hides nothing: its brightest pixel is {brightest}, and white (above "
                "127 of 255) is the hole"
            )
    if holes.all():
        raise ValueError(f"the mask covers all of {name}: nothing is left to fill it from")
    return holes.astype(np.uint8)


def _rectangle(mask: str) -> tuple[int, int, int, int] | None:
    found = re.fullmatch(r"\[?(\d+), ?(\d+), ?(\d+), ?(\d+)\]?", mask)
    return tuple(int(x) for x in found.groups()) if found else None  # type: ignore[return-value]


def _write_strip(out: str, original: Bytes, mask: Bytes, filled: Bytes) -> str:
    """Original, mask and result side by side, beside `out` as `<stem>_strip.png`."""
    url = _strip_url(out)
    pictures.write(url, ImageFile(pictures.strip(original, mask, filled)))
    return url


def _strip_url(out: str) -> str:
    return f"{out.rsplit('.', 1)[0]}_strip.png"
