"""`bench metrics`: our PSNR, SSIM and L1 vs. scikit-image's, on the same composites.

It also measures what LPIPS costs over its network, and `evaluate` over its model and metrics.

One thread each, CPU seconds, rows in turn; scikit-image as its documentation recommends
(`channel_axis`, `data_range`), SSIM in each of our four conventions. Both give the same numbers to
1e-6, checked here on the images that are timed.
"""

import tempfile
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models import GENERATORS, perceptual
from models.inpainter import Inpainter
from pipeline.bench import images as written
from pipeline.bench.images import SIDE, crops
from pipeline.bench.timing import alternate, compare, faster, report, target
from pipeline.config.groups import SSIM_WINDOWS, EvaluationData, ProtocolConfig, RecordConfig
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import evaluate, metrics, pixels, scoring
from pipeline.evaluation.pairs import pairs_of
from pipeline.runs.folder import folder_at
from pipeline.training.checkpointing import Saver
from shards.masks import irregular

BATCH = 8
WANTED = 5.0  # times scikit-image's images per second
AGREES = 1e-6
Images = NDArray[np.uint8]
METRIC, WHOLE = 1.15, 1.2  # times the cost of the networks' forwards, and of network and metrics
MODEL = {"name": "msanet", "width": 0.25}
Measured = tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]  # rows, targets


def run(images: int = 32, repetitions: int = 5, pairs: int = 200) -> dict[str, Any]:
    """Measure PSNR, SSIM and L1 of `images`, LPIPS, and `evaluate` of `pairs` pairs."""
    torch.set_num_threads(1)
    result, image = composites(images)
    tensors = torch.from_numpy(result), torch.from_numpy(image)
    mine = measured(*(x[:4] for x in tensors))
    theirs = [scikit_images(a, b) for a, b in zip(result[:4], image[:4])]
    worst = max(float(np.abs(mine[k].numpy() - [t[k] for t in theirs]).max()) for k in theirs[0])
    if worst > AGREES:
        raise RuntimeError(f"ours and scikit-image differ by {worst:.1e}, more than {AGREES}")

    def ours() -> int:
        for pair in zip(*(x.split(BATCH) for x in tensors)):
            measured(*pair)
        return images

    def scikit_image() -> int:
        for a, b in zip(result, image):
            scikit_images(a, b)
        return images

    rows = alternate({"ours": ours, "scikit-image": scikit_image}, repetitions)
    ratios, targets = compare(
        rows, {"images per CPU second, ours / scikit-image": ("ours", "scikit-image", WANTED)}
    )
    ratios["largest difference of a number"] = worst
    few = torch.from_numpy(result[:2]), torch.from_numpy(image[:2])
    for more, met in (learned(*few, repetitions), whole(pairs, 2)):
        rows += more
        targets |= met
        ratios |= {name: found["value"] for name, found in met.items()}
    return report("metrics", {"images": images, "side": SIDE, "threads": 1}, rows, ratios, targets)


def learned(result: torch.Tensor, image: torch.Tensor, repetitions: int) -> Measured:
    """Measure LPIPS over VGG16 and the forwards of its VGG16 alone, both of uint8 N×H×W×3."""
    lpips = perceptual.lpips_vgg()

    def floats() -> list[torch.Tensor]:
        return [x.permute(0, 3, 1, 2).float() / 255 for x in (result, image)]

    @torch.no_grad()
    def metric() -> int:
        lpips(*floats())
        return len(result)

    @torch.no_grad()
    def network() -> int:
        lpips.features(torch.cat(floats()))
        return len(result)

    rows = alternate({"LPIPS (VGG)": metric, "its network": network}, repetitions)
    cost = faster(rows, "its network", "LPIPS (VGG)")
    return rows, {"LPIPS (VGG) / its network": target(cost, METRIC, at_least=False)}


def whole(count: int, repetitions: int) -> Measured:
    """Measure `evaluate` of `count` pairs, and network and metrics alone on decoded pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        url = written.write(Path(scratch, "set"), count, count).url
        options = {key: value for key, value in MODEL.items() if key != "name"}
        generator = GENERATORS[str(MODEL["name"])](**options).eval()
        saver = Saver(folder_at(f"{scratch}/run"), keep=1)
        saver.save(1, {"generator": dict(generator.state_dict())}, {"model": MODEL})
        saver.close()
        config = EvaluateConfig(
            checkpoint=f"{scratch}/run",
            data=EvaluationData(url=url),
            protocol=ProtocolConfig(buckets=["center"]),
            split="train",
            tracking=RecordConfig(enabled=False),
        )
        pairs, _ = pairs_of(config)
        starts = range(0, count, config.batch)
        batches = [pairs.load(start, start + config.batch) for start in starts]
        predict = scoring.predictor(Inpainter(generator).eval(), "cpu")

        def ours() -> int:
            return int(evaluate.evaluate(config)["pairs"])

        def alone() -> int:
            for batch in batches:
                result = scoring.composite(predict, batch, "cpu")
                metrics.measure(result, batch.images, batch.masks)
            return count

        rows = alternate({"evaluate": ours, "network and metrics": alone}, repetitions)
    cost = faster(rows, "network and metrics", "evaluate")
    return rows, {"evaluate / network and metrics": target(cost, WHOLE, at_least=False)}


def composites(count: int) -> tuple[Images, Images]:
    """Return composites, holes (0.2 to 0.4) filled with noisy mean color, and their originals."""
    rng = np.random.default_rng(0)
    image = np.stack(list(islice(cycle(crops()), count)))
    holes = np.stack([irregular(SIDE, SIDE, 0.2, 0.4, 0, (0, i)) for i in range(count)])
    noise = rng.normal(0, 12, image.shape)
    filled = np.clip(image.mean((1, 2), keepdims=True) + noise, 0, 255).astype(np.uint8)
    return np.where(holes[..., None] == 1, filled, image), image


def measured(result: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute PSNR, SSIM in all conventions and L1 of uint8 N×H×W×3."""
    similar = {f"ssim_{x}": pixels.ssim(result, image, x) for x in SSIM_WINDOWS}
    return {"psnr": pixels.psnr(result, image), "l1": pixels.l1(result, image), **similar}


def scikit_images(result: Images, image: Images) -> dict[str, float]:
    """Compute PSNR, SSIM in all conventions and L1 of a pair by scikit-image and numpy."""
    color = {"data_range": 255, "channel_axis": 2}
    wang = {**color, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    grays = rgb2gray(image), rgb2gray(result)
    found = {
        "psnr": peak_signal_noise_ratio(image, result, data_range=255),
        "l1": np.abs(result.astype(np.float32) - image).mean() / 255 * 100,
        "ssim_gauss11_rgb": structural_similarity(image, result, **wang),
        "ssim_uniform7_rgb": structural_similarity(image, result, **color),
    }
    for name in ("uniform7_gray", "uniform51_gray"):
        window = SSIM_WINDOWS[name]
        found[f"ssim_{name}"] = structural_similarity(*grays, win_size=window, data_range=1)
    return found
