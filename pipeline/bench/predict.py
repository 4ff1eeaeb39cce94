"""`bench predict`: seconds for a 256×256 picture, as MSA-Net's paper states them.

"0.026 s" an image on a Titan XP; the paper does not say at which batch, so both are timed: one
picture at a time, and a batch. Compositing is included, decoding is not. The device is named, and
no ratio to another machine's number is a target.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models import GENERATORS
from models.inpainter import Inpainter
from pipeline.bench.timing import report
from shards.masks import irregular

SIDE = 256
PRINTED = {"seconds an image": 0.026, "device": "Titan XP", "source": "MSA-Net, section 4"}


def run(
    images: int = 8, repetitions: int = 5, width: float = 1.0, name: str = "msanet"
) -> dict[str, Any]:
    """Rows `batch 1` and `batch N` (seconds hold the time of one image), the printed time beside.

    images: pictures a repetition and the larger batch. width: of the generator, MSA-Net's only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    options = {"width": width} if name == "msanet" else {}
    inpainter = Inpainter(GENERATORS[name](**options)).to(device).eval()
    image = torch.rand(images, 3, SIDE, SIDE, device=device)
    holes = [irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(images)]
    mask = torch.stack([torch.from_numpy(hole) for hole in holes]).unsqueeze(1).float().to(device)
    rows = {
        "batch 1": lambda: _each(inpainter, image, mask, 1),
        f"batch {images}": lambda: _each(inpainter, image, mask, images),
    }
    timed = [_timed(label, work, images, repetitions, device) for label, work in rows.items()]
    best = {row["name"]: min(row["seconds"]) for row in timed}
    ratios = {
        f"{label}, of the printed {PRINTED['seconds an image']} s": seconds / 0.026
        for label, seconds in best.items()
    }
    parameters = sum(p.numel() for p in inpainter.parameters())
    work = {"side": SIDE, "generator": name, "width": width, "parameters": parameters}
    work |= {"precision": "fp32", "threads": torch.get_num_threads(), "printed": PRINTED}
    return report("predict", work, timed, ratios, {})


@torch.inference_mode()
def _each(inpainter: nn.Module, image: Tensor, mask: Tensor, batch: int) -> None:
    for start in range(0, len(image), batch):
        inpainter(image[start : start + batch], mask[start : start + batch])


def _timed(
    label: str, work: Callable[[], None], images: int, repetitions: int, device: torch.device
) -> dict[str, Any]:
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for turn in range(repetitions + 2):
        _settle(device)
        began = time.perf_counter()
        work()
        _settle(device)
        if turn >= 2:  # the first ones choose algorithms and fill caches
            seconds.append((time.perf_counter() - began) / images)
    row: dict[str, Any] = {"name": label, "items": images, "seconds": seconds}
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
