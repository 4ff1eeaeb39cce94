"""Evaluations with scores as one likes, of nothing that was ever trained."""

import numpy as np
import pyarrow as pa

from pipeline.comparison.collect import Evaluation
from pipeline.evaluation import metrics, results
from shards.masks import FIXED, NAMES

BUCKETS = [*NAMES, FIXED]
PICTURES = 40
FACTS = {
    "protocol": "msanet",
    "ssim": "gauss11_rgb",
    "size": 256,
    "split": "test",
    "images": 2000,
    "resize_short": 256,
    "weights": "raw",
    "pairs": PICTURES * len(BUCKETS),
    "pairs_digest": "a" * 64,
    "dataset_name": "places365_standard",
    "masks_name": "imported",
    "masks_count": 14_000,
    "data_url": "s3://sets/places",
}


def table(psnr, seed=0):
    """Scores around `psnr` dB whose errors the seed decides; the pictures' share is the same."""
    pictures = np.random.default_rng(99).normal(0, 3, PICTURES)
    noise = np.random.default_rng(seed).normal(0, 0.05, (PICTURES, len(BUCKETS)))
    values = psnr + pictures[:, None] + noise - 2 * np.arange(len(BUCKETS))
    rows = {name: [0.5] * values.size for name in metrics.METRICS}
    rows |= {
        "pair": range(values.size),
        "name": [f"{i:09d}-b{j}" for i in range(PICTURES) for j in range(len(BUCKETS))],
        "key": [i for i in range(PICTURES) for _ in BUCKETS],
        "mask_key": [i for i in range(PICTURES) for _ in BUCKETS],
        "bucket": BUCKETS * PICTURES,
        "ratio": [0.3] * values.size,
        "psnr": values.ravel(),
    }
    return pa.table(rows, schema=results.SCHEMA)


def evaluation(name, psnr, noise=0, **facts):
    """Of a thing `name` with scores around `psnr` dB; `noise` is the seed of its own errors."""
    told = {**FACTS, "name": name, **facts}
    return Evaluation(f"{name}.parquet", told, table(psnr, noise))
