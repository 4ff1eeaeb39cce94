"""Checkpoints: safetensors with full tensors by name, and `state.json`, written last.

    <run>/checkpoints/<images_seen:012d>/generator.safetensors            weights and buffers
                                         generator_ema.safetensors        averaged weights, if any
                                         generator_optimizer.safetensors  "<parameter>/exp_avg", ...
                                         generator_scaler.safetensors     fp16's loss scale
                                         state.json                       hashes, data position

One format for every strategy and world size, in a folder or a bucket. Without `state.json` a
checkpoint does not exist; one with a wrong checksum is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.launch.output import publish_log
from pipeline.runs.checkpoints import (
    NAME,
    SCHEMA,
    Checkpoint,
    is_whole,
    list_checkpoints,
    remove,
    score,
)
from pipeline.runs.folder import RunFolder
from pipeline.runs.run_json import read_run_json
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.network import TrainableNetwork
from pipeline.training.progress import TrainState
from shards import store
from shards.manifest import Manifest

SCALER = ("scale", "_growth_tracker")  # the part of fp16's loss scaler that changes
Files = dict[str, dict[str, Tensor]]


class Saver:
    """Copy tensors off the device, then write them in a thread while training continues."""

    def __init__(self, run: RunFolder, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._buffers: dict[str, Tensor] = {}
        self.published: Checkpoint | None = None  # the last complete one

    def save(self, images_seen: int, files: Files, state: Mapping[str, Any]) -> None:
        """Write a checkpoint in the background, after the previous one is complete."""
        self.wait()
        copies = {
            name: {k: self._stage(f"{name}/{k}", t.detach()) for k, t in tensors.items()}
            for name, tensors in files.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._pending = self._thread.submit(self._write, images_seen, copies, dict(state))

    def _stage(self, name: str, tensor: Tensor) -> Tensor:
        """Copy to a host buffer kept for the next save: allocating costs more than copying."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, images_seen: int, files: Files, state: dict[str, Any]) -> None:
        url = store.join(self.run.url, "checkpoints", f"{images_seen:012d}")
        listed = {}
        for name, tensors in files.items():
            data = serialize(tensors)
            store.write(store.join(url, f"{name}.safetensors"), data)
            listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        state = {**state, "schema": SCHEMA, "images_seen": images_seen, "files": listed}
        text = json.dumps(state, indent=1, sort_keys=True) + "\n"
        self.run.publish()  # first: a resume from this checkpoint needs the steps before it
        store.write(store.join(url, "state.json"), text.encode())
        self.published = Checkpoint(url, state)
        self._retain(self.published)

    def _retain(self, newest: Checkpoint) -> None:
        """Delete old and incomplete checkpoints, after the newest was read back and verified.

        Keeps the last `keep`, the best, and those that an evaluation or the registry pinned. Those
        of later steps are not counted: they were corrupt when this attempt began.
        """
        saved = [c for c in list_checkpoints(self.run.url) if c.name <= newest.name]
        kept = {c.name for c in saved[-max(1, self.keep) :]}
        kept |= {max(saved, key=score, default=newest).name}
        base = store.join(self.run.url, "checkpoints")
        older = [n for n in store.names(base) if NAME.fullmatch(n) and n < newest.name]
        if set(older) <= kept:
            return
        pinned = read_run_json(self.run.url).get("pinned", [])  # read now: others write it
        kept |= {c.name for c in saved if c.images_seen in pinned}
        drop = [name for name in older if name not in kept]
        if drop and is_whole(newest):
            for name in drop:
                remove(store.join(base, name))


def checkpoint_files(players: Sequence[TrainableNetwork]) -> Files:
    """Collect all tensors that a bit-exact resume needs; every rank must call it."""
    files: Files = {}
    for player in players:
        name, prefix = player.file
        parts = {name: player.weights()}
        if player.ema is not None:
            parts[f"{name}_ema"] = dict(player.ema.state_dict())
        for file, tensors in parts.items():
            files.setdefault(file, {}).update({prefix + k: t for k, t in tensors.items()})
        files[f"{player.name}_optimizer"] = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, state in player.moments().items()
            for key, value in state.items()
        }
        if player.scaler is not None:
            scaler = player.scaler.state_dict()
            files[f"{player.name}_scaler"] = {k: torch.tensor(scaler[k]) for k in SCALER}
    return files


def save(
    config: TrainConfig,
    networks: Method,
    engine: Engine,
    saver: Saver,
    manifest: Manifest,
    state: TrainState,
) -> None:
    """Save a checkpoint: every rank must call it, rank 0 writes. Publishes each node's log too."""
    publish_log()
    files = checkpoint_files(networks.players)
    if engine.is_main:
        facts = {
            **asdict(state),
            "trains_image": networks.trains_image,
            "model": asdict(config.model),
            "dataset": manifest.digest,
            "pretrained": networks.pretrained,
            "world_size": engine.world_size,
        }
        saver.save(state.images_seen, files, facts)
