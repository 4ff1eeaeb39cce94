"""A few pictures of every evaluation, kept beside its table: `<table>.pictures.zip`.

Members: KEY.png (original), KEY_mask.png (white: hole), KEY_result.png (composite). Picture i of
the set has the hole of bucket i, i + 1, …, so that a dozen pictures show every bucket.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation import metrics
from pipeline.evaluation.pairs import PairBatch, Pairs
from pipeline.inference import images
from pipeline.inference.images import ImageFile
from shards import store

Bytes = NDArray[np.uint8]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same pictures give the same file


class EvaluatedPair(NamedTuple):
    name: str
    image: Bytes  # H×W×3
    mask: Bytes  # H×W, 1 = hole
    result: Bytes  # H×W×3


def url_of(table: str) -> str:
    """Where the pictures of the table at `table` lie."""
    return f"{table.removesuffix('.parquet')}.pictures.zip"


def chosen(pairs: Pairs, count: int) -> list[int]:
    """Positions of `count` pairs: the first pictures, each with the next bucket's hole."""
    buckets = len({pair.bucket for pair in pairs.pairs})
    return [i * buckets + i % buckets for i in range(min(count, len(pairs) // buckets))]


def draw(
    answer: Callable[[PairBatch], torch.Tensor], pairs: Pairs, positions: Sequence[int]
) -> list[EvaluatedPair]:
    """The samples at `positions`, filled."""
    found = []
    for i in positions:
        loaded = pairs.load(i, i + 1)
        result = metrics.composite_bytes(answer(loaded).cpu(), loaded.images, loaded.masks)
        arrays = (loaded.images[0].numpy(), loaded.masks[0].numpy(), result[0].numpy())
        found.append(EvaluatedPair(loaded.pairs[0].name, *arrays))
    return found


def save(table: str, samples: Sequence[EvaluatedPair]) -> str:
    """Publish the samples beside the table at `table`; their URL."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for sample in samples:
            mask = np.repeat(sample.mask[..., None] * 255, 3, 2).astype(np.uint8)
            panels = {"": sample.image, "_mask": mask, "_result": sample.result}
            for suffix, pixels in panels.items():
                member = zipfile.ZipInfo(f"{sample.name}{suffix}.png", EPOCH)
                archive.writestr(member, images.encode(images.ImageFile(pixels)))
    store.write(url_of(table), buffer.getvalue())
    return url_of(table)


def load(table: str) -> list[EvaluatedPair]:
    """The samples kept beside the table at `table`; none where it has none."""
    if not store.exists(url_of(table)):
        return []
    found = []
    with zipfile.ZipFile(io.BytesIO(store.read(url_of(table)))) as archive:

        def pixels(name: str) -> Bytes:
            return images.decode(archive.read(name), name).pixels

        for name in archive.namelist():
            if (stem := name.removesuffix("_result.png")) != name:
                mask = (pixels(f"{stem}_mask.png")[..., 0] > 127).astype(np.uint8)
                found.append(EvaluatedPair(stem, pixels(f"{stem}.png"), mask, pixels(name)))
    return found


def export(pairs: Pairs, out: str, tell: Callable[[int], None]) -> None:
    """Write every pair into the folder or URL `out`; files that are there are written again."""
    for i in range(len(pairs)):
        loaded = pairs.load(i, i + 1)
        name = loaded.pairs[0].name
        mask = np.repeat(loaded.masks[0].numpy()[..., None] * 255, 3, 2)
        images.write(store.join(out, f"{name}.png"), ImageFile(loaded.images[0].numpy()))
        images.write(store.join(out, f"{name}_mask.png"), ImageFile(mask))
        tell(i + 1)


def answers(
    folder: str, pairs: Pairs
) -> tuple[Callable[[PairBatch], torch.Tensor], dict[str, Any]]:
    """What the pictures in `folder` answer to a batch, and the facts that results carry.

    Grey, 16-bit and transparent pictures are read as `inference.images` says. ValueError
    when one is missing, or has another size than its pair.
    """
    there = set(store.names(folder))
    missing = [pair.name for pair in pairs.pairs if f"{pair.name}.png" not in there]
    if missing:
        raise ValueError(
            f"predictions={store.display(folder)} lacks {len(missing)} of {len(pairs)} pictures, "
            f"first {missing[0]}.png: `evaluate export=DIR` with the same keys writes the pairs"
        )
    sha = hashlib.sha256()
    for pair in pairs.pairs:
        sha.update(store.read(store.join(folder, f"{pair.name}.png")))

    def answer(loaded: PairBatch) -> torch.Tensor:
        return torch.stack([_read(folder, pair.name, pairs.size) for pair in loaded.pairs])

    name = store.name(folder)
    facts = {"name": name, "weights": "unknown", "sha256": sha.hexdigest()}
    return answer, facts | {"predictions": store.display(folder)}


def _read(folder: str, name: str, size: int) -> torch.Tensor:
    url = store.join(folder, f"{name}.png")
    pixels = images.read(url).pixels
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise ValueError(
            f"{store.display(url)} is {width}×{height}, its pair {size}×{size}: "
            "answer with the picture's own size"
        )
    return torch.from_numpy(pixels.copy())
