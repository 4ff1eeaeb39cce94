"""Pairs as files, and other people's pictures of them, so that their models stand in our tables.

`export` writes KEY.png (the picture) and KEY_mask.png (white: hole). Whatever answers them, in any
framework, writes its KEY.png into another folder; `answers` reads those.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.pairs import PairBatch, Pairs
from pipeline.inference import images as pictures
from pipeline.inference.images import Picture
from shards import store


def export(pairs: Pairs, out: str, tell: Callable[[int], None]) -> None:
    """Write every pair into the folder or URL `out`; files that are there are written again."""
    for i in range(len(pairs)):
        loaded = pairs.load(i, i + 1)
        name = loaded.pairs[0].name
        mask = np.repeat(loaded.masks[0].numpy()[..., None] * 255, 3, 2)
        pictures.write(store.join(out, f"{name}.png"), Picture(loaded.images[0].numpy()))
        pictures.write(store.join(out, f"{name}_mask.png"), Picture(mask))
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

    name = folder.rstrip("/").rsplit("/", 1)[-1]
    facts = {"name": name, "weights": "unknown", "sha256": sha.hexdigest()}
    return answer, facts | {"predictions": store.display(folder)}


def _read(folder: str, name: str, size: int) -> torch.Tensor:
    url = store.join(folder, f"{name}.png")
    pixels = pictures.read(url).pixels
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise ValueError(
            f"{store.display(url)} is {width}×{height}, its pair {size}×{size}: "
            "answer with the picture's own size"
        )
    return torch.from_numpy(pixels.copy())
