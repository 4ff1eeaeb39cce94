"""`bench predict`: seconds per 256×256 image, the figure that MSA-Net's paper states.

The paper has 0.026 s per image on a Titan XP and does not say the batch size, so both are timed:
one image at a time, and a batch. Compositing is included, decoding is not. The ratio to a number
from another machine is reported, but is not a target.
"""

from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from models import GENERATORS
from models.inpainter import Inpainter
from pipeline.bench.images import SIDE
from pipeline.bench.timing import alternate, report
from shards.masks import irregular

PRINTED = {"seconds an image": 0.026, "device": "Titan XP", "source": "MSA-Net, section 4"}


def run(images: int = 8, repetitions: int = 5, width: float = 1.0) -> dict[str, Any]:
    """Measure rows `batch 1` and `batch N`; their seconds per image are compared with the paper's.

    images: per repetition, and in the larger batch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    inpainter = Inpainter(GENERATORS["msanet"](width=width)).to(device).eval()
    image = torch.rand(images, 3, SIDE, SIDE, device=device)
    holes = [irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(images)]
    mask = torch.stack([torch.from_numpy(hole) for hole in holes]).unsqueeze(1).float().to(device)
    rows = alternate(
        {f"batch {n}": partial(_inpaint, inpainter, image, mask, n) for n in (1, images)},
        repetitions,
    )
    ratios = {
        f"{row['name']}, of the printed 0.026 s": median(row["seconds"]) / images / 0.026
        for row in rows
    }
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32  # torch's default there
    work = {
        "side": SIDE,
        "generator": "msanet",
        "width": width,
        "parameters": sum(p.numel() for p in inpainter.parameters()),
        "precision": "tf32" if tf32 else "fp32",
        "threads": torch.get_num_threads(),
        "printed": PRINTED,
    }
    return report("predict", work, rows, ratios, {})


@torch.inference_mode()
def _inpaint(inpainter: nn.Module, image: Tensor, mask: Tensor, batch: int) -> int:
    for start in range(0, len(image), batch):
        inpainter(image[start : start + batch], mask[start : start + batch])
    return len(image)
