"""Evaluations with chosen scores, without a trained model."""

import numpy as np
import pyarrow as pa

from pipeline.comparison.collect import Evaluation
from pipeline.evaluation import metrics, results
from shards.masks import FIXED, NAMES

BUCKETS = [*NAMES, FIXED]
IMAGES = 40
FACTS = {
    "protocol": "msanet",
    "ssim": "gauss11_rgb",
    "size": 256,
    "split": "test",
    "images": 2000,
    "resize_short": 256,
    "weights": "raw",
    "pairs": IMAGES * len(BUCKETS),
    "pairs_digest": "a" * 64,
    "dataset_name": "places365_standard",
    "masks_name": "imported",
    "masks_count": 14_000,
    "data_url": "s3://sets/places",
}


def table(psnr, seed=0):
    """Scores around `psnr` dB; the seed draws their noise, the difficulty of an image is fixed."""
    difficulty = np.random.default_rng(99).normal(0, 3, IMAGES)
    noise = np.random.default_rng(seed).normal(0, 0.05, (IMAGES, len(BUCKETS)))
    values = psnr + difficulty[:, None] + noise - 2 * np.arange(len(BUCKETS))
    rows = {m.name: [0.5] * values.size for m in metrics.METRICS}
    rows |= {
        "pair": range(values.size),
        "name": [f"{i:09d}-b{j}" for i in range(IMAGES) for j in range(len(BUCKETS))],
        "key": [i for i in range(IMAGES) for _ in BUCKETS],
        "mask_key": [i for i in range(IMAGES) for _ in BUCKETS],
        "bucket": BUCKETS * IMAGES,
        "ratio": [0.3] * values.size,
        "psnr": values.ravel(),
    }
    return pa.table(rows, schema=results.schema())


def evaluation(name, psnr, noise=0, **facts):
    """Evaluation `name` with scores around `psnr` dB; `noise` is the seed of its noise."""
    facts = {**FACTS, "name": name, **facts}
    return Evaluation(f"{name}.parquet", facts, table(psnr, noise))
