"""`bench metrics`: our PSNR and SSIM beside scikit-image's, on the same composites.

One thread each, CPU seconds, rows in turn; scikit-image as its documentation has it
(`channel_axis`, `data_range`, Wang et al.'s window). Both give the same numbers to 1e-6, checked
here on the pictures that are timed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.bench.timing import alternate, faster, report, target
from pipeline.evaluation import metrics
from shards.masks import irregular

SIDE = 256
BATCH = 8
WANTED = 5.0  # times scikit-image's images a second
AGREES = 1e-6
Pictures = NDArray[np.uint8]


def run(images: int = 32, repetitions: int = 5) -> dict[str, Any]:
    """Rows, ratios and the target: the protocol's PSNR and SSIM, and all four SSIM conventions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result, image = composites(images)
    worst = disagreement(result[:4], image[:4])
    if worst > AGREES:
        raise RuntimeError(f"ours and scikit-image differ by {worst:.1e}, more than {AGREES}")
    few, every = ("gauss11_rgb",), tuple(metrics.SSIM_WINDOWS)
    work: dict[str, Callable[[], Iterator[int]]] = {
        "ours": lambda: _ours(result, image, few),
        "scikit-image": lambda: _theirs(result, image, few),
        "ours, four conventions": lambda: _ours(result, image, every),
        "scikit-image, four conventions": lambda: _theirs(result, image, every),
    }
    rows = alternate(work, repetitions, sliced=work)
    torch.set_num_threads(threads)
    ratio = faster(rows, "ours", "scikit-image")
    ratios = {
        "images per CPU second, ours / scikit-image": ratio,
        "the same with four conventions": faster(
            rows, "ours, four conventions", "scikit-image, four conventions"
        ),
        "largest difference of a number": worst,
    }
    work_told = {"images": images, "side": SIDE, "threads": 1}
    return report("metrics", work_told, rows, ratios, {"metrics": target(ratio, WANTED)})


def composites(count: int) -> tuple[Pictures, Pictures]:
    """Photographs and composites whose holes (0.2 to 0.4) are filled with noisy mean colour."""
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    rng = np.random.default_rng(0)
    image = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top = rng.integers(photograph.shape[0] - SIDE + 1)
        left = rng.integers(photograph.shape[1] - SIDE + 1)
        image[i] = photograph[top : top + SIDE, left : left + SIDE]
    holes = np.stack([irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(count)])
    noise = rng.normal(0, 12, image.shape)
    filled = np.clip(image.mean((1, 2), keepdims=True) + noise, 0, 255).astype(np.uint8)
    return np.where(holes[..., None] == 1, filled, image), image


def disagreement(result: Pictures, image: Pictures) -> float:
    """Largest difference between our numbers and scikit-image's."""
    ours = torch.from_numpy(result), torch.from_numpy(image)
    worst = 0.0
    for convention in metrics.SSIM_WINDOWS:
        theirs = [ssim(a, b, convention) for a, b in zip(result, image)]
        found = metrics.ssim(*ours, convention).numpy()
        worst = max(worst, float(np.abs(found - theirs).max()))
    return worst


def ssim(result: Pictures, image: Pictures, convention: str) -> float:
    """scikit-image's number in one of our conventions."""
    if convention == "gauss11_rgb":
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        found = structural_similarity(image, result, data_range=255, channel_axis=2, **options)
    elif convention == "uniform7_rgb":
        found = structural_similarity(image, result, data_range=255, channel_axis=2)
    else:
        window = metrics.SSIM_WINDOWS[convention]
        grey = rgb2gray(image), rgb2gray(result)
        found = structural_similarity(*grey, data_range=1, win_size=window)
    return float(found)


def _ours(result: Pictures, image: Pictures, conventions: tuple[str, ...]) -> Iterator[int]:
    for start in range(0, len(result), BATCH):
        here = slice(start, start + BATCH)
        pictures = torch.from_numpy(result[here]), torch.from_numpy(image[here])
        metrics.psnr(*pictures)
        for convention in conventions:
            metrics.ssim(*pictures, convention)
        yield len(result[here])


def _theirs(result: Pictures, image: Pictures, conventions: tuple[str, ...]) -> Iterator[int]:
    for one, other in zip(result, image):
        peak_signal_noise_ratio(other, one, data_range=255)
        for convention in conventions:
            ssim(one, other, convention)
        yield 1
