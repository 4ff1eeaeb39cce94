"""`bench predict`: seconds per 256×256 image, the figure that MSA-Net's paper states.

The paper has 0.026 s per image on a Titan XP and does not say the batch size, so both are timed:
one image at a time, and a batch. Compositing is included, decoding is not. The ratio to a number
from another machine is reported, but is not a target.
"""

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from models import GENERATORS
from models.inpainter import Inpainter
from pipeline.bench.images import SIDE
from pipeline.bench.timing import now, report
from shards.masks import irregular

PRINTED = {"seconds an image": 0.026, "device": "Titan XP", "source": "MSA-Net, section 4"}


def run(
    images: int = 8, repetitions: int = 5, width: float = 1.0, name: str = "msanet"
) -> dict[str, Any]:
    """Measure rows `batch 1` and `batch N`, in seconds per image, and their ratio to the paper's.

    images: per repetition, and in the larger batch. width: of the generator, MSA-Net's only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    options = {"width": width} if name == "msanet" else {}
    inpainter = Inpainter(GENERATORS[name](**options)).to(device).eval()
    image = torch.rand(images, 3, SIDE, SIDE, device=device)
    holes = [irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(images)]
    mask = torch.stack([torch.from_numpy(hole) for hole in holes]).unsqueeze(1).float().to(device)
    timed = _timed(inpainter, image, mask, (1, images), repetitions)
    ratios = {
        f"{row['name']}, of the printed 0.026 s": median(row["seconds"]) / 0.026 for row in timed
    }
    parameters = sum(p.numel() for p in inpainter.parameters())
    work = {"side": SIDE, "generator": name, "width": width, "parameters": parameters}
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32  # torch's default there
    work |= {
        "precision": "tf32" if tf32 else "fp32",
        "threads": torch.get_num_threads(),
        "printed": PRINTED,
    }
    return report("predict", work, timed, ratios, {})


@torch.inference_mode()
def _inpaint(inpainter: nn.Module, image: Tensor, mask: Tensor, batch: int) -> None:
    for start in range(0, len(image), batch):
        inpainter(image[start : start + batch], mask[start : start + batch])


def _timed(
    inpainter: nn.Module, image: Tensor, mask: Tensor, batches: tuple[int, ...], repetitions: int
) -> list[dict[str, Any]]:
    """A row per batch size, in turn; two rounds of warm-up choose algorithms and fill caches."""
    rows: list[dict[str, Any]] = [
        {"name": f"batch {batch}", "items": len(image), "seconds": []} for batch in batches
    ]
    for turn in range(repetitions + 2):
        for row, batch in zip(rows, batches):
            if image.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            began = now()
            _inpaint(inpainter, image, mask, batch)
            ended = now()
            if turn >= 2:
                row["seconds"].append((ended - began) / len(image))
            if image.is_cuda:
                row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return rows
