"""Score an inpainter on fixed pairs, on one rank or on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models import masking
from pipeline.evaluation import metrics
from pipeline.evaluation.pairs import PairBatch, Pairs
from pipeline.evaluation.results import SCHEMA, merge

Inpaint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Answer = Callable[[PairBatch], torch.Tensor]  # uint8 N×H×W×3, what the hole is taken from
CONVENTIONS = tuple(metrics.SSIM_WINDOWS)
READ_AHEAD = 2  # batches decoded while one is inpainted


def validate(
    inpaint: Inpaint,
    pairs: Pairs,
    gather: Callable[[Any], list[Any]],
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """`val/*`: means over all pairs, the same number on every rank and for any world size."""
    mine = score(inpaint, pairs, 4, device, ("gauss11_rgb",), rank, world_size)
    table = merge(gather(mine), len(pairs))
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


def score(
    inpaint: Inpaint,
    pairs: Pairs,
    batch: int = 8,
    device: torch.device | str = "cpu",
    conventions: Iterable[str] = CONVENTIONS,
    rank: int = 0,
    world_size: int = 1,
) -> pa.Table:
    """One row for each of this rank's pairs, columns of `SCHEMA`, in the order of the pairs.

    inpaint: image N×3×H×W float in [0, 1] with its holes erased, mask N×1×H×W (1 = hole), both on
    `device` → N×3×H×W. SSIM columns outside `conventions` are null.
    """
    starts = range(0, len(pairs), batch)[rank::world_size]
    answer = asking(inpaint, device)
    return _score(answer, pairs, starts, batch, device, tuple(conventions))


def asking(inpaint: Inpaint, device: torch.device | str) -> Answer:
    """What a network answers to a batch. The hole is hidden from it."""

    @torch.no_grad()
    def answer(loaded: PairBatch) -> torch.Tensor:
        mask = loaded.masks.to(device).unsqueeze(1).float()
        image = loaded.images.to(device).permute(0, 3, 1, 2).float() / 255
        return metrics.to_bytes(inpaint(masking.erase(image, mask), mask))

    return answer


def fill(inpaint: Inpaint, loaded: PairBatch, device: torch.device | str) -> torch.Tensor:
    """The composites of a batch, uint8 N×H×W×3 on `device`."""
    return _composite(asking(inpaint, device), loaded, device)


def _composite(answer: Answer, loaded: PairBatch, device: torch.device | str) -> torch.Tensor:
    images, masks = loaded.images.to(device), loaded.masks.to(device)
    return metrics.composite_bytes(answer(loaded).to(device), images, masks)


def _score(
    answer: Answer,
    pairs: Pairs,
    starts: Sequence[int],
    batch: int,
    device: torch.device | str,
    conventions: tuple[str, ...],
) -> pa.Table:
    tables = [SCHEMA.empty_table()]
    for start, loaded in batches(pairs, starts, batch):
        result = _composite(answer, loaded, device)
        images, masks = loaded.images.to(device), loaded.masks.to(device)
        values = metrics.measure(result, images, masks, conventions)
        tables.append(_rows(start, loaded, masks, values))
    return pa.concat_tables(tables)


def batches(pairs: Pairs, starts: Sequence[int], batch: int) -> Iterator[tuple[int, PairBatch]]:
    """The batches that begin at `starts`, decoded ahead in threads."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting = [pool.submit(pairs.load, s, s + batch) for s in starts[:READ_AHEAD]]
        for i, start in enumerate(starts):
            loaded = waiting.pop(0).result()
            for ahead in starts[i + READ_AHEAD : i + READ_AHEAD + 1]:
                waiting.append(pool.submit(pairs.load, ahead, ahead + batch))
            yield start, loaded


def _rows(
    start: int, loaded: PairBatch, masks: torch.Tensor, values: dict[str, torch.Tensor]
) -> pa.Table:
    columns: dict[str, Any] = {
        "pair": range(start, start + len(loaded.pairs)),
        "name": [pair.name for pair in loaded.pairs],
        "key": [pair.image.key for pair in loaded.pairs],
        "mask_key": [pair.mask.key for pair in loaded.pairs],
        "bucket": [pair.bucket for pair in loaded.pairs],
        "ratio": masks.double().mean((1, 2)).tolist(),
    }
    for name in metrics.METRICS:
        found = values[name].tolist() if name in values else [None] * len(loaded.pairs)
        columns[name] = pa.array(found, pa.float64(), from_pandas=True)  # NaN → null
    return pa.table(columns, schema=SCHEMA)
