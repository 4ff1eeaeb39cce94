"""`bench metrics`: our PSNR and SSIM vs. scikit-image's, on the same composites.

One thread each, CPU seconds, rows in turn; scikit-image as its documentation recommends
(`channel_axis`, `data_range`, Wang et al.'s window). Both give the same numbers to 1e-6, checked
here on the images that are timed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.bench.images import SIDE, crops
from pipeline.bench.timing import alternate, faster, report, target
from pipeline.evaluation import metrics
from shards.masks import irregular

BATCH = 8
WANTED = 5.0  # times scikit-image's images per second
AGREES = 1e-6
Images = NDArray[np.uint8]


def run(images: int = 32, repetitions: int = 5) -> dict[str, Any]:
    """Measure the protocol's PSNR and SSIM, and all four SSIM conventions."""
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
    work_shown = {"images": images, "side": SIDE, "threads": 1}
    return report("metrics", work_shown, rows, ratios, {"metrics": target(ratio, WANTED)})


def composites(count: int) -> tuple[Images, Images]:
    """Composites whose holes (0.2 to 0.4) are filled with noisy mean color, and their originals."""
    rng = np.random.default_rng(0)
    image = np.stack(list(crops(count)))
    holes = np.stack([irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(count)])
    noise = rng.normal(0, 12, image.shape)
    filled = np.clip(image.mean((1, 2), keepdims=True) + noise, 0, 255).astype(np.uint8)
    return np.where(holes[..., None] == 1, filled, image), image


def disagreement(result: Images, image: Images) -> float:
    """The largest difference between our SSIM and scikit-image's."""
    ours = torch.from_numpy(result), torch.from_numpy(image)
    worst = 0.0
    for convention in metrics.SSIM_WINDOWS:
        theirs = [ssim(a, b, convention) for a, b in zip(result, image)]
        mine = metrics.ssim(*ours, convention).numpy()
        worst = max(worst, float(np.abs(mine - theirs).max()))
    return worst


def ssim(result: Images, image: Images, convention: str) -> float:
    """SSIM by scikit-image in one of our conventions."""
    if convention == "gauss11_rgb":
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        value = structural_similarity(image, result, data_range=255, channel_axis=2, **options)
    elif convention == "uniform7_rgb":
        value = structural_similarity(image, result, data_range=255, channel_axis=2)
    else:
        window = metrics.SSIM_WINDOWS[convention]
        gray = rgb2gray(image), rgb2gray(result)
        value = structural_similarity(*gray, data_range=1, win_size=window)
    return float(value)


def _ours(result: Images, image: Images, conventions: tuple[str, ...]) -> Iterator[int]:
    for start in range(0, len(result), BATCH):
        here = slice(start, start + BATCH)
        pair = torch.from_numpy(result[here]), torch.from_numpy(image[here])
        metrics.psnr(*pair)
        for convention in conventions:
            metrics.ssim(*pair, convention)
        yield len(result[here])


def _theirs(result: Images, image: Images, conventions: tuple[str, ...]) -> Iterator[int]:
    for one, other in zip(result, image):
        peak_signal_noise_ratio(other, one, data_range=255)
        for convention in conventions:
            ssim(one, other, convention)
        yield 1
