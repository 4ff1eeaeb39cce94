"""`evaluate`: held-out pictures and fixed masks in, a table of per-image scores out.

The batches are fixed groups of consecutive pairs and rank r takes batch r, r + world size, …: each
pair is scored once, in the same company, so that any world size gives the same table.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch

from models import masking
from pipeline import metrics
from pipeline.pairs import PairBatch, Pairs
from pipeline.results import SCHEMA

Inpaint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
READ_AHEAD = 2  # batches decoded while one is inpainted


def score(
    inpaint: Inpaint,
    pairs: Pairs,
    batch: int = 8,
    device: torch.device | str = "cpu",
    conventions: Iterable[str] = tuple(metrics.SSIM_WINDOWS),
    rank: int = 0,
    world_size: int = 1,
) -> pa.Table:
    """One row for each of this rank's pairs, columns of `SCHEMA`, in the order of the pairs.

    inpaint: image N×3×H×W float in [0, 1] with its holes erased, mask N×1×H×W (1 = hole), both on
    `device` → N×3×H×W. SSIM columns outside `conventions` are null.
    """
    tables = [
        score_batch(inpaint, start, loaded, device, conventions)
        for start, loaded in batches(pairs, batch, rank, world_size)
    ]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def batches(
    pairs: Pairs, batch: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, PairBatch]]:
    """This rank's batches, each with the position of its first pair, decoded ahead in threads."""
    starts = list(range(0, len(pairs), batch))[rank::world_size]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting = [pool.submit(pairs.load, s, s + batch) for s in starts[:READ_AHEAD]]
        for i, start in enumerate(starts):
            loaded = waiting.pop(0).result()
            for ahead in starts[i + READ_AHEAD : i + READ_AHEAD + 1]:
                waiting.append(pool.submit(pairs.load, ahead, ahead + batch))
            yield start, loaded


def score_batch(
    inpaint: Inpaint,
    start: int,
    loaded: PairBatch,
    device: torch.device | str,
    conventions: Iterable[str],
) -> pa.Table:
    """Rows of one batch whose first pair has position `start`."""
    result = fill(inpaint, loaded, device)
    images, masks = loaded.images.to(device), loaded.masks.to(device)
    values = metrics.measure(result, images, masks, tuple(conventions))
    columns: dict[str, Any] = {
        "pair": range(start, start + len(loaded.pairs)),
        "name": [pair.name for pair in loaded.pairs],
        "key": [pair.image.key for pair in loaded.pairs],
        "mask_key": [pair.mask.key for pair in loaded.pairs],
        "bucket": [pair.bucket for pair in loaded.pairs],
        "ratio": masks.double().mean((1, 2)).tolist(),
    }
    for name in metrics.METRICS:
        found = values[name].tolist() if name in values else [float("nan")] * len(loaded.pairs)
        columns[name] = pa.array(found, pa.float64(), from_pandas=True)  # NaN → null
    return pa.table(columns, schema=SCHEMA)


@torch.no_grad()
def fill(inpaint: Inpaint, loaded: PairBatch, device: torch.device | str) -> torch.Tensor:
    """The composites of a batch, uint8 N×H×W×3 on `device`. The hole is hidden from `inpaint`."""
    images, masks = loaded.images.to(device), loaded.masks.to(device)
    mask = masks.unsqueeze(1).float()
    image = masking.erase(images.permute(0, 3, 1, 2).float() / 255, mask)
    return metrics.composite_bytes(metrics.to_bytes(inpaint(image, mask)), images, masks)
