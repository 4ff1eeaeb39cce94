"""What a training run records: its tracker, opened with the run's facts, and its pictures."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from typing import Any

from PIL import Image

from pipeline.capture import commit
from pipeline.config import TrainConfig
from pipeline.engine import Engine
from pipeline.identity import RunFolder, write_config
from pipeline.runfolder import update_run_json
from pipeline.tracking import Muted, Tracker
from shards import store
from shards.manifest import Manifest


def open_tracker(config: TrainConfig, run: RunFolder, engine: Engine, manifest: Manifest) -> Any:
    if engine.is_main:
        write_config(config, run)
        name = run.url.rstrip("/").rpartition("/")[2]
        here = {"host": socket.gethostname(), "pid": os.getppid()}
        facts = {"id": name, "url": run.url, "dataset": manifest.digest, "launcher": here}
        update_run_json(run.url, **facts, commit=commit(), error=None, result={})
    if not engine.is_main or not config.tracking.enabled:
        return Muted()
    recipe = config.experiment or "train"
    tracker = Tracker(
        run.url,
        root=config.root if config.run is None else None,
        experiment=config.tracking.experiment or f"{os.environ.get('USER', 'user')}/{recipe}",
        run_name=run.url.rstrip("/").rpartition("/")[2],
        required=config.tracking.required,
        drain=config.tracking.drain,
    )
    dataset = (config.data.name, store.display(manifest.url), manifest.digest)
    tags = {"recipe": recipe, "weights": "ema" if config.ema else "raw"}
    tracker.start(asdict(config), tags, dataset)
    tracker.artifact(run.local / "config.yaml")
    return tracker


def show(run: RunFolder, tracker: Any, shown: list[dict[str, Any]], images_seen: int) -> None:
    folder = run.local / "samples"
    folder.mkdir(exist_ok=True)
    for i, sample in enumerate(shown):
        for what, pixels in sample.items():
            name = f"{i:02d}-{what}" + (f"-{images_seen:012d}" if what == "filled" else "")
            if what == "filled" or not (folder / f"{name}.png").exists():
                tracker.image(f"samples/{i:02d}/{what}", pixels, images_seen)
                Image.fromarray(pixels).save(folder / f"{name}.png")
