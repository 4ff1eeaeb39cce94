"""Score an inpainting model on fixed pairs, on one rank or on several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models import masking
from pipeline.config.groups import SSIM_WINDOWS
from pipeline.evaluation import metrics, pixels, results
from pipeline.evaluation.pairs import PairBatch, Pairs

Inpaint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Predict = Callable[[PairBatch], torch.Tensor]  # uint8 N×H×W×3; only the hole is used
READ_AHEAD = 2  # batches decoded while one is inpainted


def validate(
    inpaint: Inpaint,
    pairs: Pairs,
    gather: Callable[[Any], list[Any]],
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """Return `val/*`: means over all pairs, the same on every rank and for any world size."""
    convention, size = "gauss11_rgb", 4
    starts = range(0, len(pairs), size)[rank::world_size]
    mine = score(predictor(inpaint, device), pairs, starts, size, device, (convention,))
    table = results.merge(gather(mine), len(pairs))
    return {
        f"val/{key}": float(np.mean(table[metric.name].to_numpy()))
        for key, metric in metrics.printed_metrics(convention).items()
    }


def predictor(inpaint: Inpaint, device: torch.device | str) -> Predict:
    """Wrap a network so that it predicts a batch of pairs, with the pixels of the hole erased.

    inpaint: image N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole), both on `device` → N×3×H×W.
    """

    @torch.no_grad()
    def predict(batch: PairBatch) -> torch.Tensor:
        mask = batch.masks.to(device).unsqueeze(1).float()
        image = batch.images.to(device).permute(0, 3, 1, 2).float() / 255
        return pixels.to_bytes(inpaint(masking.erase(image, mask), mask))

    return predict


def composite(predict: Predict, batch: PairBatch, device: torch.device | str) -> torch.Tensor:
    """Fill the holes of a batch; uint8 N×H×W×3 on `device`."""
    images, masks = batch.images.to(device), batch.masks.to(device)
    return pixels.composite_bytes(predict(batch).to(device), images, masks)


def score(
    predict: Predict,
    pairs: Pairs,
    starts: Sequence[int],
    size: int,
    device: torch.device | str,
    conventions: Sequence[str] = tuple(SSIM_WINDOWS),
    chosen: Sequence[str] = (),
    record: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> pa.Table:
    """Score the batches of `size` pairs that begin at `starts`: a row per pair (`results.schema`).

    SSIM columns outside `conventions` are null, and those of metrics that need weights outside
    `chosen`. record: is given each batch's composites and originals, uint8 N×H×W×3.
    """
    tables = [results.schema().empty_table()]
    for start, batch in read_batches(pairs, starts, size):
        result = composite(predict, batch, device)
        images, masks = batch.images.to(device), batch.masks.to(device)
        values = metrics.measure(result, images, masks, conventions, chosen)
        if record is not None:
            record(result, images)
        tables.append(_rows(start, batch, masks, values))
    return pa.concat_tables(tables)


def read_batches(pairs: Pairs, starts: Sequence[int], size: int) -> Iterator[tuple[int, PairBatch]]:
    """Yield the batches that begin at `starts`, decoded ahead in threads."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting = [pool.submit(pairs.load, s, s + size) for s in starts[:READ_AHEAD]]
        for i, start in enumerate(starts):
            batch = waiting.pop(0).result()
            for ahead in starts[i + READ_AHEAD : i + READ_AHEAD + 1]:
                waiting.append(pool.submit(pairs.load, ahead, ahead + size))
            yield start, batch


def _rows(
    start: int, batch: PairBatch, masks: torch.Tensor, values: dict[str, torch.Tensor]
) -> pa.Table:
    columns: dict[str, Any] = {
        "pair": range(start, start + len(batch.pairs)),
        "name": [pair.name for pair in batch.pairs],
        "key": [pair.image.key for pair in batch.pairs],
        "mask_key": [pair.mask.key for pair in batch.pairs],
        "bucket": [pair.bucket for pair in batch.pairs],
        "ratio": masks.double().mean((1, 2)).tolist(),
    }
    for metric in metrics.METRICS:
        name = metric.name
        numbers = values[name].tolist() if name in values else [None] * len(batch.pairs)
        columns[name] = pa.array(numbers, pa.float64(), from_pandas=True)  # NaN → null
    return pa.table(columns, schema=results.schema())
