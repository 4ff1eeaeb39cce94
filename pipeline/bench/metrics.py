"""`bench metrics`: our PSNR and SSIM vs. scikit-image's, on the same composites.

One thread each, CPU seconds, rows in turn; scikit-image as its documentation recommends
(`channel_axis`, `data_range`, Wang et al.'s window). Both give the same numbers to 1e-6, checked
here on the images that are timed.
"""

from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.bench.images import SIDE, crops
from pipeline.bench.timing import alternate, compare, report
from pipeline.evaluation import metrics
from shards.masks import irregular

BATCH = 8
WANTED = 5.0  # times scikit-image's images per second
AGREES = 1e-6
CONVENTION = "gauss11_rgb"  # the protocol's
Images = NDArray[np.uint8]


def run(images: int = 32, repetitions: int = 5) -> dict[str, Any]:
    """Measure the protocol's PSNR and SSIM."""
    torch.set_num_threads(1)
    result, image = composites(images)
    mine = metrics.ssim(torch.from_numpy(result[:4]), torch.from_numpy(image[:4]), CONVENTION)
    theirs = [ssim(a, b) for a, b in zip(result[:4], image[:4])]
    worst = float(np.abs(mine.numpy() - theirs).max())
    if worst > AGREES:
        raise RuntimeError(f"ours and scikit-image differ by {worst:.1e}, more than {AGREES}")

    def ours() -> int:
        for pair in zip(
            torch.from_numpy(result).split(BATCH), torch.from_numpy(image).split(BATCH)
        ):
            metrics.psnr(*pair)
            metrics.ssim(*pair, CONVENTION)
        return images

    def scikit_image() -> int:
        for a, b in zip(result, image):
            peak_signal_noise_ratio(b, a, data_range=255)
            ssim(a, b)
        return images

    rows = alternate({"ours": ours, "scikit-image": scikit_image}, repetitions)
    ratios, targets = compare(
        rows, {"images per CPU second, ours / scikit-image": ("ours", "scikit-image", WANTED)}
    )
    ratios["largest difference of a number"] = worst
    return report("metrics", {"images": images, "side": SIDE, "threads": 1}, rows, ratios, targets)


def composites(count: int) -> tuple[Images, Images]:
    """Return composites, holes (0.2 to 0.4) filled with noisy mean color, and their originals."""
    rng = np.random.default_rng(0)
    image = np.stack(list(islice(cycle(crops()), count)))
    holes = np.stack([irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(count)])
    noise = rng.normal(0, 12, image.shape)
    filled = np.clip(image.mean((1, 2), keepdims=True) + noise, 0, 255).astype(np.uint8)
    return np.where(holes[..., None] == 1, filled, image), image


def ssim(result: Images, image: Images) -> float:
    """Compute SSIM by scikit-image in the protocol's convention."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(image, result, data_range=255, channel_axis=2, **options))
