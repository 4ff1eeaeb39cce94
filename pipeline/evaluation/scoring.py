"""Validation while training: fixed pairs of the `val` split, scored on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.masking import composite
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.evaluate import fill, score
from pipeline.evaluation.pairs import CENTER, Pair, Pairs, make_pairs
from pipeline.evaluation.results import merge
from pipeline.training.engine import Engine
from pipeline.training.preflight import VALIDATED
from shards.manifest import Manifest, open_manifest
from shards.masks import BUCKETS, irregular, square

SEED = 20210217  # of validation masks: the same for every run, whatever its seed


@dataclass(frozen=True)
class DrawnPairs(Pairs):
    """Pairs whose masks are drawn instead of read from a set: irregular ones bucket after bucket,
    or squares."""

    kind: str = "irregular"

    def _mask(self, pair: Pair) -> NDArray[np.uint8]:
        if self.kind == "square":
            return square(self.size, self.size, (SEED, pair.image.key))
        low, high = BUCKETS[pair.image.key % len(BUCKETS)]
        return irregular(self.size, self.size, low, high, 0, (SEED, pair.image.key))


def fixed_pairs(config: TrainConfig, manifest: Manifest) -> Pairs:
    """The first `validate.pairs` pictures of the split, each with a hole of the kind trained on."""
    kind, size, short = config.masks.kind, config.validate.size, config.data.resize_short
    split, count = config.data.validate, config.validate.pairs
    if config.masks.url is not None:
        masks = open_manifest(config.masks.url)
        return make_pairs(manifest, split, masks, [VALIDATED], size, short, count)
    pairs = make_pairs(manifest, split, None, [CENTER], size, short, count)
    if kind == "center":
        return pairs
    return DrawnPairs(**{f.name: getattr(pairs, f.name) for f in fields(Pairs)}, kind=kind)


def validate(
    inpaint: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pairs: Pairs, engine: Engine
) -> dict[str, float]:
    """`val/*`: means over all pairs, the same number on every rank and for any world size."""
    mine = score(inpaint, pairs, 4, engine.device, ("gauss11_rgb",), engine.rank, engine.world_size)
    table = merge(engine.gather(mine), len(pairs))
    names = {"val/psnr": "psnr", "val/ssim": "ssim_gauss11_rgb", "val/l1": "l1"}
    return {k: float(np.mean(table[column].to_numpy())) for k, column in names.items()}


def pictures(inpaint: Any, pairs: Pairs, count: int, device: Any) -> list[dict[str, np.ndarray]]:
    """`count` samples for looking: original, erased (hole grey) and filled, uint8 H x W x 3."""
    found = []
    for i in range(min(count, len(pairs))):
        loaded = pairs.load(i, i + 1)
        filled = fill(inpaint, loaded, device)[0].cpu().numpy()
        original = loaded.images[0].numpy()
        grey = np.full_like(original, 128)
        hole = loaded.masks[0].numpy()[..., None].astype(bool)
        found.append(
            {"original": original, "erased": np.where(hole, grey, original), "filled": filled}
        )
    return found


__all__ = ["composite", "fixed_pairs", "pictures", "validate"]
