"""Pairs and predictions as image files: samples kept with a table, exported pairs, predictions.

Every evaluation keeps a few of its pairs next to its table, in `<table>.images.zip`: KEY.png
(original), KEY_mask.png (white: hole), KEY_result.png (composite). Image i of the set has the hole
of bucket i, i + 1, …, so that a dozen images show every bucket.

`export` writes the image and the mask of every pair under the names that a model's program reads.
The program writes its results into another folder; `read_predictions` reads those, so that the
model can be scored on our pairs.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.common import console
from pipeline.evaluation.pairs import PairBatch, Pairs
from pipeline.evaluation.scoring import Inpaint, Predict, composite, predictor
from pipeline.inference import images
from pipeline.inference.images import ImageFile
from shards import store

Bytes = NDArray[np.uint8]
GRAY = np.uint8(128)
HEADING = 16  # pixels of a contact sheet above its first row
# Names of an exported image and its mask. LaMa's predict.py names a result as the mask, the others
# as the image.
NAMES = {
    "pairs": ("{}.png", "{}_mask.png"),
    "lama": ("{}.png", "{}_mask001.png"),
    "mat": ("images/{}.png", "masks/{}.png"),
}
RESULTS = ("{}.png", "{}_mask001.png")
EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same images give the same file


class EvaluatedPair(NamedTuple):
    name: str
    image: Bytes  # H×W×3
    mask: Bytes  # H×W, 1 = hole
    result: Bytes  # H×W×3


def samples_url(table: str) -> str:
    """Return where the samples of the table at `table` are kept."""
    return f"{table.removesuffix('.parquet')}.images.zip"


def sample_positions(pairs: Pairs, count: int) -> list[int]:
    """Return positions of `count` pairs: the first images, each with the next bucket's hole."""
    buckets = len({pair.bucket for pair in pairs.pairs})
    return [i * buckets + i % buckets for i in range(min(count, len(pairs) // buckets))]


def fill_samples(predict: Predict, pairs: Pairs, count: int) -> list[EvaluatedPair]:
    """Fill `count` sample pairs."""
    samples = []
    for i in sample_positions(pairs, count):
        batch = pairs.load(i, i + 1)
        arrays = (batch.images, batch.masks, composite(predict, batch, "cpu"))
        samples.append(EvaluatedPair(batch.pairs[0].name, *(array[0].numpy() for array in arrays)))
    return samples


def contact_sheet(inpaint: Inpaint, pairs: Pairs, count: int, device: torch.device) -> Bytes | None:
    """Fill samples while training; return one image with a row for each: uint8 H×W×3, or None.

    Columns: original, masked (hole gray), result.
    """
    samples = fill_samples(predictor(inpaint, device), pairs, count)
    rows = [
        np.hstack([each.image, np.where(each.mask[..., None], GRAY, each.image), each.result])
        for each in samples
    ]
    if not rows:
        return None
    heading = Image.new("RGB", (rows[0].shape[1], HEADING), "white")
    for i, label in enumerate(("original", "masked", "result")):
        ImageDraw.Draw(heading).text((i * heading.width // 3 + 4, 2), label, "black")
    return np.vstack([np.asarray(heading), *rows])


def save(table: str, samples: Sequence[EvaluatedPair]) -> str:
    """Publish the samples of the table at `table`; return their URL."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for sample in samples:
            mask = images.mask_image(sample.mask)
            panels = {"": sample.image, "_mask": mask, "_result": sample.result}
            for suffix, pixels in panels.items():
                member = zipfile.ZipInfo(f"{sample.name}{suffix}.png", EPOCH)
                archive.writestr(member, images.encode(ImageFile(pixels)))
    store.write(samples_url(table), buffer.getvalue())
    return samples_url(table)


def load(table: str) -> list[EvaluatedPair]:
    """Return the samples of the table at `table`; an empty list if none were kept."""
    former = f"{table.removesuffix('.parquet')}.pictures.zip"  # as older versions named the file
    url = next(filter(store.exists, (samples_url(table), former)), None)
    if url is None:
        return []
    samples = []
    with zipfile.ZipFile(io.BytesIO(store.read(url))) as archive:

        def pixels(name: str) -> Bytes:
            return images.decode(archive.read(name), name).pixels

        for name in archive.namelist():
            if (stem := name.removesuffix("_result.png")) != name:
                mask = images.decode_mask(archive.read(f"{stem}_mask.png"), stem).astype(np.uint8)
                samples.append(EvaluatedPair(stem, pixels(f"{stem}.png"), mask, pixels(name)))
    return samples


def export(pairs: Pairs, out: str, layout: str = "pairs") -> None:
    """Write every pair into the folder or URL `out`; existing files are overwritten.

    Holes are white, in MAT's masks black.
    """
    show_progress = console.progress("export", len(pairs))
    for i in range(len(pairs)):
        batch = pairs.load(i, i + 1)
        name = batch.pairs[0].name
        mask = images.mask_image(batch.masks[0].numpy())
        panels = (batch.images[0].numpy(), 255 - mask if layout == "mat" else mask)
        for form, pixels in zip(NAMES[layout], panels):
            images.write(store.join(out, form.format(name)), ImageFile(pixels))
        show_progress(i + 1)


def read_predictions(folder: str, pairs: Pairs) -> tuple[Predict, dict[str, Any]]:
    """Return the images in `folder` as predictions, and the facts that results carry.

    Gray, 16-bit and transparent images are converted by `inference.images`. Raises ValueError when
    one is missing, or has another size than its pair.
    """
    existing = set(store.names(folder))
    urls = {
        pair.name: store.join(folder, file)
        for pair in pairs.pairs
        for form in reversed(RESULTS)
        if (file := form.format(pair.name)) in existing
    }
    if missing := [pair.name for pair in pairs.pairs if pair.name not in urls]:
        raise ValueError(
            f"predictions={store.display(folder)} lacks {len(missing)} of {len(pairs)} images, "
            f"first {missing[0]}.png: `evaluate export=DIR` with the same keys writes the pairs"
        )
    sha = hashlib.sha256()
    for pair in pairs.pairs:
        sha.update(store.read(urls[pair.name]))

    def predict(batch: PairBatch) -> torch.Tensor:
        return torch.stack([_read(urls[pair.name], pairs.size) for pair in batch.pairs])

    name = store.name(folder)
    facts = {"name": name, "weights": "unknown", "sha256": sha.hexdigest()}
    return predict, facts | {"predictions": store.display(folder)}


def _read(url: str, size: int) -> torch.Tensor:
    pixels = images.read(url).pixels
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise ValueError(
            f"prediction {store.display(url)} is {width}×{height}, expected {size}×{size}: "
            "write predictions at the size of the exported images"
        )
    return torch.from_numpy(pixels.copy())
