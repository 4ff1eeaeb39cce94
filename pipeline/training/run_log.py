"""What a training run records: the tracker, run.json, steps.jsonl and sample images."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.common.console import say
from pipeline.common.environment import commit, user
from pipeline.config import outside
from pipeline.config.schema import TrainConfig
from pipeline.evaluation import metrics
from pipeline.inference import images
from pipeline.launch.restarts import FAILED
from pipeline.runs.checkpoints import Checkpoint
from pipeline.runs.folder import RunFolder, sheet_name
from pipeline.runs.identity import changed_key, shown_values, title, write_config
from pipeline.runs.run_json import change_run_json, place_of
from pipeline.tracking.delivery import NOTE
from pipeline.tracking.lifecycle import fork
from pipeline.tracking.provenance import hardware
from pipeline.tracking.tracker import NullTracker, Tracker
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.progress import Meter, TrainState
from shards import files, store
from shards.manifest import Manifest
from shards.samples import archive

# MLflow sorts charts by the part before the slash: this comes before all metrics.
SHEET = "at a glance/original masked result"


def open_tracker(config: TrainConfig, run: RunFolder, engine: Engine, manifest: Manifest) -> Any:
    """Write config.yaml and run.json and start the tracker on rank 0; null trackers elsewhere."""
    name = title(config, run.url)
    config = replace(config, threads=str(torch.get_num_threads()), precision=engine.precision)
    if engine.is_main:
        _write_facts(config, run, manifest)
    if not engine.is_main or not config.tracking.enabled:
        return NullTracker()
    recipe = config.experiment or "train"
    tracker = Tracker(
        run.url,
        root=config.root if config.run is None else None,
        experiment=config.tracking.experiment or f"{user()}/{recipe}",
        run_name=name,
        required=config.tracking.required,
        drain=config.tracking.drain,
        direction=metrics.direction,
    )
    dataset = (config.data.name, store.display(manifest.url), manifest.digest)
    tags = {"recipe": recipe, "weights": "ema" if config.ema else "raw"}
    tags[NOTE] = description(config)
    if config.methods.path:
        tags["methods.sha256"] = outside.digest(config.methods.path)
    tracker.start(shown_values(config), tags, dataset)
    tracker.artifact("config.yaml", (run.local / "config.yaml").read_bytes())
    return tracker


def description(config: TrainConfig) -> str:
    """Return what MLflow shows of a run first, Markdown; delivery fills in `{run_id}`."""
    about = f"{config.model.name} on {config.data.name} (split {config.data.train})"
    about += f", recipe {config.experiment}" if config.experiment else ""
    sheet = "get-artifact?path=samples.png&run_uuid={run_id}"  # relative to the server's page
    return f"{about}. All settings: `config.yaml` under Artifacts.\n\n![samples]({sheet})"


def _write_facts(config: TrainConfig, run: RunFolder, manifest: Manifest) -> None:
    """Write config.yaml, and merge this attempt's facts into run.json."""
    cpu = str(hardware()["cpu"])
    facts: dict[str, Any] = {"id": run.name, "url": place_of(run.url), "cpu": cpu}
    facts |= {"dataset": manifest.digest, "commit": commit()}
    facts["methods"] = outside.digest(config.methods.path) if config.methods.path else None
    facts |= {"archive": archive(manifest, config.data.train)}
    facts |= {"launcher": {"host": socket.gethostname(), "pid": os.getppid()}}
    if run.config is not None and not run.images_saved and changed_key(config, run.config):
        facts["mlflow_run_id"] = None  # another run's, which ended before its first checkpoint
    if run.images_saved < config.max_images:  # else this attempt has no new result
        facts["result"] = {}

    def merge(known: dict[str, Any]) -> dict[str, Any]:
        if known.get("cpu", cpu) != cpu:
            changed = f"CPU changed ({known['cpu']} -> {cpu})"
            say(f"{changed}: results may no longer be bit-identical")
        return {**fork(run.url, known), **facts, "error": None}

    write_config(config, run)
    change_run_json(run.url, merge)


def save_sheet(run: RunFolder, tracker: Any, sheet: Any, images_seen: int) -> None:
    """Save a validation's contact sheet, if any, to the run's folder and to MLflow.

    There it is the first chart of the run, with a slider over all validations, and the newest is
    `samples.png`, which the run's description shows.
    """
    if sheet is None:
        return
    png = images.encode(images.ImageFile(sheet))
    store.write(str(run.local / sheet_name(images_seen)), png)
    tracker.image(SHEET, sheet, images_seen)
    tracker.artifact("samples.png", png)


def tag_checkpoint(tracker: Any, newest: Checkpoint | None) -> None:
    """Tag the MLflow run with the newest checkpoint's URL and the sha256 of each of its files."""
    if newest is None:
        return
    hashes = {f"{n}.safetensors": f["sha256"] for n, f in newest.state["files"].items()}
    tracker.tag("checkpoint.url", store.display(newest.url))
    tracker.tag("checkpoint.images_seen", str(newest.images_seen))
    tracker.tag("checkpoint.sha256", json.dumps(hashes))


def record_restart(run: RunFolder, tracker: Any, images_seen: int, repeated: int) -> None:
    """Record what the last failure cost: seconds to this step, and images that are repeated."""
    failed = float(os.environ[FAILED])
    seconds = round(time.time() - failed, 3)

    def merge(known: dict[str, Any]) -> dict[str, Any]:
        *before, last = known.get("restarts") or [{"cause": "unknown", "failed": failed}]
        return {"restarts": [*before, {**last, "seconds": seconds, "repeated": repeated}]}

    restarts = change_run_json(run.url, merge)["restarts"]
    lost = sum(each["seconds"] for each in restarts)
    values = {"health/restarts": len(restarts), "health/restart_seconds": lost}
    tracker.metrics({**values, "health/images_repeated": repeated}, images_seen)
    tracker.tag("job.restart", f"{restarts[-1]['cause']} ({seconds:.0f} s)")


def finish(run: RunFolder, tracker: Any, meter: Meter, state: TrainState, status: str) -> None:
    """Merge the attempt's result into run.json, publish the run's files, log the speed."""
    result = {
        "status": status,
        "images_seen": state.images_seen,
        "skipped": state.skipped,
        **state.metrics,
        **meter.values(),
    }

    def merge(known: dict[str, Any]) -> dict[str, Any]:
        return {"result": {**known.get("result", {}), **result}, "step_ms": meter.step_ms}

    change_run_json(run.url, merge)
    run.publish()
    tracker.metrics(meter.values(), state.images_seen)


def headline(
    config: TrainConfig, run: RunFolder, engine: Engine, images_seen: int, networks: Method
) -> str:
    """Format an attempt's first line: run, progress, model, devices, batch."""
    precision = engine.precision
    if (config.precision, precision, engine.device.type) == ("auto", "fp32", "cuda"):
        precision = "fp32 (this GPU has no bf16: precision=fp16 is faster)"
    name, length = store.display(run.url), f"{config.max_images} images"
    start = f"resuming {name} at {images_seen} of {length}"
    if images_seen >= config.max_images:
        start = f"{name} has already seen {images_seen} of {length}"
    elif not images_seen:
        start = f"starting {name}, {length}"
    weights = sum(player.size for player in networks.fillers) / 1e6
    line = (
        f"{start}: {config.model.name} {weights:.2f} M weights, "
        f"{engine.world_size} x {engine.device.type}, "
        f"{config.parallel.strategy}, {precision}, batch {config.batch}, "
        f"{torch.get_num_threads()} threads each"
    )
    layers = (layer for player in networks.players for layer in player.module.modules())
    if config.accumulate > 1 and any(isinstance(layer, _BatchNorm) for layer in layers):
        alone = 1 if config.parallel.sync_batchnorm else engine.world_size
        seen = config.batch // config.accumulate // alone
        line += f"; BatchNorm sees {seen} images at a time (accumulate={config.accumulate})"
    return line


class StepLog:
    """steps.jsonl: one object a line, means over ranks and over the steps since the last line."""

    def __init__(self, run: RunFolder, engine: Engine, every: int) -> None:
        self.url = store.join(run.url, "steps.jsonl")
        self.path, self.engine, self.every = run.local / "steps.jsonl", engine, every
        self._sums: dict[str, list[Any]] = {}  # of each term: its sum, and on how many steps
        self._count = 0

    def cut(self, images_seen: int) -> int:
        """Drop lines after the checkpoint that is resumed, and an incomplete last line.

        Returns the number of images of the dropped lines.

        The lines are read from the run's URL, which has at least those before each checkpoint; a
        local copy of an earlier attempt on this machine is replaced.
        """
        if not self.engine.is_main:
            return 0
        try:
            lines = store.read(self.url).decode().splitlines()
        except FileNotFoundError:
            lines = []
        kept, last = [], images_seen
        for line in lines:
            try:
                last = json.loads(line)["images_seen"]
                if last <= images_seen:
                    kept.append(line + "\n")
            except ValueError:
                break
        if kept or self.path.exists():
            store.write(str(self.path), "".join(kept).encode())
        return int(last) - images_seen

    @property
    def due(self) -> bool:
        """Whether the next step ends a line."""
        return self._count + 1 >= self.every

    def add(
        self, losses: dict[str, Tensor], images_seen: int, lr: float, skipped: int, flush: bool
    ) -> dict[str, float]:
        """Add a step; every `every` steps write a line on rank 0 and return its mean losses.

        The mean of a term is over the steps on which it was computed.
        """
        for name, value in losses.items():
            known, steps = self._sums.get(name, (0, 0))
            self._sums[name] = [known + value, steps + 1]
        self._count += 1
        if self._count < self.every and not flush:
            return {}  # nothing is fetched from a GPU
        values = self.engine.means({k: v / n for k, (v, n) in self._sums.items()})
        self._sums, self._count = {}, 0
        if self.engine.is_main:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"images_seen": images_seen, **finite, "lr": lr, "skipped": skipped}
            try:
                files.append_to(self.path, f"{json.dumps(line)}\n".encode())
            except OSError as error:
                raise store.unwritable(self.path, error) from error
        return values
