"""Finished runs without training: a real checkpoint of random weights, with chosen scores."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models import GENERATORS
from pipeline.evaluation import metrics, results
from pipeline.registry import register
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking.client import connect, experiment_id
from pipeline.training import checkpointing
from shards.masks import NAMES

MODEL = {"name": "msanet", "width": 0.0625}
SIMPLE = {"name": "context_encoder", "width": 0.1, "levels": 4}  # few nodes, so a quick export
PAIRS = "d" * 64


def finished_run(
    folder: Path, seed: int = 0, uri: str | None = None, model: dict[str, Any] = MODEL
) -> str:
    """Make a run's folder with one checkpoint at 1000 images; with `uri` its MLflow run too."""
    torch.manual_seed(seed)
    options = {key: value for key, value in model.items() if key != "name"}
    generator = GENERATORS[model["name"]](**options)
    run = folder_at(str(folder))
    saver = checkpointing.Saver(run, 3)
    facts = {"model": model, "dataset": "ab" * 32, "metrics": {}}
    saver.save(1000, {"generator": dict(generator.state_dict())}, facts)
    saver.close()
    update_run_json(str(folder), url=str(folder), dataset=facts["dataset"])
    if uri:
        client = connect(uri)
        experiment = experiment_id(client, uri, "me/recipe")
        made = client.create_run(experiment, run_name=folder.name)
        client.set_terminated(made.info.run_id)
        update_run_json(
            str(folder),
            mlflow_run_id=made.info.run_id,
            mlflow_experiment_id=experiment,
            mlflow_uri=uri,
        )
    return str(folder)


def registered(run: str, uri: str, name: str = "inpaint-msanet") -> Any:
    """A version as `register` publishes it, around a file of the run's name instead of an archive
    (an export takes seconds; promotion never opens the archive)."""
    from mlflow.models import Model

    client = connect(uri)
    checkpoint = checkpoints.find(run)
    info = {**checkpoint.state, "run": run, "url": checkpoint.url, "weights": "raw"}
    info["images_seen"] = checkpoint.images_seen
    digest = checkpoint.state["files"]["generator"]["sha256"]
    facts = register._facts(info, read_run_json(run), name, info["model"]["name"], digest)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        (model / "artifacts").mkdir(parents=True)
        (model / "artifacts" / "inpainter.pt2").write_text(run)
        facts["sha256"] = hashlib.sha256(run.encode()).hexdigest()
        Model().save(str(model / "MLmodel"))
        register._add_sheet(info, Path(folder))
        register.ensure_model(client, name, info["model"]["name"])
        return register._publish(client, uri, read_run_json(run), facts, None, Path(folder))


def scored(run: str, psnr: float, noise: float = 0.05, pairs: str = PAIRS, **facts: Any) -> str:
    """Write an evaluation of a checkpoint with scores around `psnr` dB; return its path."""
    checkpoint = checkpoints.find(run)
    recorded = {
        "protocol": "msanet",
        "ssim": "gauss11_rgb",
        "size": 256,
        "split": "test",
        "pairs": 360,
        "pairs_digest": pairs,
        "dataset": "ab" * 32,
        "masks": "cd" * 32,
        "sha256": checkpoint.state["files"]["generator"]["sha256"],
        "run": run,
        "images_seen": checkpoint.images_seen,
        "name": "run",
        **facts,
    }
    url = f"{run}/evaluation/msanet-{pairs[:8]}.parquet"
    seed = int.from_bytes(hashlib.sha256(run.encode()).digest()[:4])
    results.save(url, table(psnr, noise, seed), recorded)
    return url


def table(psnr: float, noise: float, seed: int, images: int = 60) -> pa.Table:
    """Build scores of images of differing difficulty, equal in every table, in the six buckets."""
    rows = images * len(NAMES)
    hardness = np.random.default_rng(0).normal(0, 2, rows)
    columns: dict[str, Any] = {m.name: np.full(rows, 0.8) for m in metrics.METRICS}
    columns["psnr"] = psnr + hardness + np.random.default_rng(seed).normal(0, noise, rows)
    columns |= {
        "pair": range(rows),
        "name": [f"{i:09d}" for i in range(rows)],
        "key": [i // len(NAMES) for i in range(rows)],
        "mask_key": [0] * rows,
        "bucket": [NAMES[i % len(NAMES)] for i in range(rows)],
        "ratio": [0.3] * rows,
    }
    return pa.table(columns, schema=results.schema())
