"""What a training run records: its tracker, opened with the run's facts, and its pictures."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.common.environment import user
from pipeline.config.schema import TrainConfig
from pipeline.runs.checkpoints import Checkpoint, images_saved
from pipeline.runs.folder import RunFolder
from pipeline.runs.identity import difference, saved_config, write_config
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking.provenance import commit, hardware
from pipeline.tracking.tracker import NullTracker, Tracker
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.progress import Meter, TrainState
from shards import store
from shards.manifest import Manifest


def open_tracker(config: TrainConfig, run: RunFolder, engine: Engine, manifest: Manifest) -> Any:
    config = replace(config, threads=str(torch.get_num_threads()), precision=engine.precision)
    if engine.is_main:
        _describe(config, run, manifest)
    if not engine.is_main or not config.tracking.enabled:
        return NullTracker()
    recipe = config.experiment or "train"
    tracker = Tracker(
        run.url,
        root=config.root if config.run is None else None,
        experiment=config.tracking.experiment or f"{user()}/{recipe}",
        run_name=_name(run),
        required=config.tracking.required,
        drain=config.tracking.drain,
    )
    dataset = (config.data.name, store.display(manifest.url), manifest.digest)
    tags = {"recipe": recipe, "weights": "ema" if config.ema else "raw"}
    tracker.start(asdict(config), tags, dataset)
    tracker.artifact(run.local / "config.yaml")
    return tracker


def _describe(config: TrainConfig, run: RunFolder, manifest: Manifest) -> None:
    """config.yaml and run.json, on the first node; a refused start leaves no MLflow run to this."""
    saved, known = saved_config(run.url), read_run_json(run.url)
    fresh = saved is not None and not images_saved(run.url) and difference(config, saved)
    facts: dict[str, Any] = {"mlflow_run_id": None} if fresh else {}
    cpu = str(hardware()["cpu"])
    if known.get("cpu", cpu) != cpu:
        print(f"bits may differ from here on: {known['cpu']} before, {cpu} now", file=sys.stderr)
    facts |= {"id": _name(run), "url": run.url, "dataset": manifest.digest, "cpu": cpu}
    facts |= {"launcher": {"host": socket.gethostname(), "pid": os.getppid()}, "commit": commit()}
    if images_saved(run.url) < config.max_images:  # else there is no other to come
        facts |= {"result": {}}
    write_config(config, run)
    update_run_json(run.url, **facts, error=None)


def _name(run: RunFolder) -> str:
    return store.name(run.url)


def show(run: RunFolder, tracker: Any, shown: list[dict[str, Any]], images_seen: int) -> None:
    """Sample pictures, into MLflow and the run's folder; what stays the same is written once."""
    folder = run.local / "samples"
    for i, sample in enumerate(shown):
        for what, pixels in sample.items():
            name = f"{i:02d}-{what}" + (f"-{images_seen:012d}" if what == "filled" else "")
            if what == "filled" or not (folder / f"{name}.png").exists():
                tracker.image(f"samples/{i:02d}/{what}", pixels, images_seen)
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                store.write(str(folder / f"{name}.png"), png.getvalue())


def note_checkpoint(tracker: Any, newest: Checkpoint | None) -> None:
    """Where the newest checkpoint lies, and the sha256 of each of its files."""
    if newest is None:
        return
    hashes = {f"{n}.safetensors": f["sha256"] for n, f in newest.state["files"].items()}
    tracker.tag("checkpoint.url", store.display(newest.url))
    tracker.tag("checkpoint.images_seen", str(newest.images_seen))
    tracker.tag("checkpoint.sha256", json.dumps(hashes))


def finish(run: RunFolder, tracker: Any, meter: Meter, state: TrainState, status: str) -> None:
    result = {
        **read_run_json(run.url).get("result", {}),
        "status": status,
        "images_seen": state.images_seen,
        "skipped": state.skipped,
        **state.metrics,
        **meter.values(),
    }
    update_run_json(run.url, result=result)
    run.publish()
    tracker.metrics(meter.values(), state.images_seen)


def headline(
    config: TrainConfig, run: RunFolder, engine: Engine, images_seen: int, networks: Method
) -> str:
    """What is trained, where and how: the first line of an attempt."""
    precision = engine.precision
    if (config.precision, precision, engine.device.type) == ("auto", "fp32", "cuda"):
        precision = "fp32 (this GPU has no bf16: precision=fp16 is faster)"
    start = "goes on at" if images_seen else "starts at"
    start = start if images_seen < config.max_images else "has seen"
    told = (
        f"{store.display(run.url)} {start} {images_seen} of {config.max_images} images: "
        f"{config.model.name} {networks.generator.size / 1e6:.2f} M weights, "
        f"{engine.world_size} x {engine.device.type}, "
        f"{config.parallel.strategy}, {precision}, batch {config.batch}, "
        f"{torch.get_num_threads()} threads each"
    )
    layers = (layer for player in networks.players for layer in player.module.modules())
    if config.accumulate > 1 and any(isinstance(layer, _BatchNorm) for layer in layers):
        alone = 1 if config.parallel.sync_batchnorm else engine.world_size
        seen = config.batch // config.accumulate // alone
        told += f"; BatchNorm sees {seen} images at a time (accumulate={config.accumulate})"
    return told


def described(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class StepLog:
    """steps.jsonl: one object a line, means over ranks and over the steps since the last line."""

    def __init__(self, run: RunFolder, engine: Engine, every: int) -> None:
        self.url = store.join(run.url, "steps.jsonl")
        self.path, self.engine, self.every = run.local / "steps.jsonl", engine, every
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def cut(self, images_seen: int) -> None:
        """Drop lines after the checkpoint that the run goes on from, and a torn last line.

        In a bucket lie at least the lines before each checkpoint; what this machine may still have
        of an earlier attempt does not count.
        """
        if not self.engine.is_main:
            return
        try:
            lines = store.read(self.url).decode().splitlines()
        except FileNotFoundError:
            lines = []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["images_seen"] <= images_seen:
                    kept.append(line + "\n")
            except ValueError:
                break
        if kept or self.path.exists():
            store.write(str(self.path), "".join(kept).encode())

    def add(
        self, losses: dict[str, Tensor], images_seen: int, lr: float, skipped: int, flush: bool
    ) -> dict[str, float]:
        """Count a step; at a line's end write it on rank 0 and return its losses on every rank."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1
        if self._count < self.every and not flush:
            return {}
        values = self.engine.means({k: v / self._count for k, v in self._sums.items()})
        self._sums, self._count = {}, 0
        if self.engine.is_main:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"images_seen": images_seen, **finite, "lr": lr, "skipped": skipped}
            try:
                with open(self.path, "a") as out:
                    out.write(json.dumps(line) + "\n")
            except OSError as error:
                raise store.unwritable(self.path, error) from error
        return values
