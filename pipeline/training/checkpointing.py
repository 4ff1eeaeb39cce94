"""Checkpoints: safetensors with full tensors by name, and `state.json`, written last.

    <run>/checkpoints/<images_seen:012d>/generator.safetensors            weights and buffers
                                         generator_ema.safetensors        averaged weights, if any
                                         generator_optimizer.safetensors  "<parameter>/exp_avg", ...
                                         generator_scaler.safetensors     fp16's loss scale
                                         state.json                       hashes, data position

One format for every strategy and world size, on a folder or a bucket. Without `state.json` a
checkpoint does not exist; one whose files do not have its hashes is passed over, loudly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.output import publish_log
from pipeline.runs.checkpoints import (
    NAME,
    SCHEMA,
    Checkpoint,
    find,
    is_whole,
    latest,
    list_checkpoints,
    load_tensors,
    passed_over,
    score,
    split_address,
)
from pipeline.runs.folder import RunFolder
from pipeline.runs.identity import other_dataset
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.network import TrainableNetwork
from pipeline.training.progress import TrainState
from shards import objects, store
from shards.manifest import Manifest

SCALER = ("scale", "_growth_tracker")  # of fp16's loss scaler: what changes
Files = dict[str, dict[str, Tensor]]
Read = Callable[[str], dict[str, Tensor]]


class Saver:
    """Copies tensors off the device, then writes them from a thread while training goes on."""

    def __init__(self, run: RunFolder, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._held: dict[str, Tensor] = {}
        self.published: Checkpoint | None = None  # the last one that exists

    def save(self, images_seen: int, files: Files, state: Mapping[str, Any]) -> None:
        """Publish a checkpoint in the background; the one before it is finished first."""
        self.wait()
        copies = {
            name: {k: self._stage(f"{name}/{k}", t.detach()) for k, t in tensors.items()}
            for name, tensors in files.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._pending = self._thread.submit(self._write, images_seen, copies, dict(state))

    def _stage(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in host memory that the next save uses again: fresh pages cost more than bytes."""
        held = self._held.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            pinned = tensor.is_cuda
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._held[name] = held
        return held.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Return once everything handed over is published; raise what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
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
            data = serialise(tensors)
            store.write(store.join(url, f"{name}.safetensors"), data)
            listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        state = {**state, "schema": SCHEMA, "images_seen": images_seen, "files": listed}
        text = json.dumps(state, indent=1, sort_keys=True) + "\n"
        self.run.publish()  # before it exists: who goes on from it needs the steps that led there
        store.write(store.join(url, "state.json"), text.encode())
        self.published = Checkpoint(url, state)
        self._retain(self.published)

    def _retain(self, newest: Checkpoint) -> None:
        """Drop old checkpoints, and what a killed writer left, once the newest is read back.

        Those of later steps were passed over when this attempt began: they count for nothing.
        """
        every = [c for c in list_checkpoints(self.run.url) if c.name <= newest.name]
        named = set(read_run_json(self.run.url).get("pinned", []))
        spare = {c.images_seen for c in every[-max(1, self.keep) :]} | named
        best = max(every, key=score, default=None)
        kept = {c.name for c in every if c.images_seen in spare or c is best}
        base = store.join(self.run.url, "checkpoints")
        there = [name for name in store.names(base) if NAME.fullmatch(name)]
        drop = [name for name in there if name < newest.name and name not in kept]
        if not drop or not is_whole(newest):
            return
        for name in drop:
            store.remove(store.join(base, name, "state.json"))
            store.remove(store.join(base, name), recursive=True)


def files_of(players: Sequence[TrainableNetwork]) -> Files:
    """Everything of the networks in training that a bit-exact resume needs; all ranks call it."""
    files: Files = {}
    for player in players:
        files[player.name] = player.weights()
        if player.ema is not None:
            files[f"{player.name}_ema"] = dict(player.ema.state_dict())
        files[f"{player.name}_optimizer"] = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, state in player.moments().items()
            for key, value in state.items()
        }
        if player.scaler is not None:
            told = player.scaler.state_dict()
            files[f"{player.name}_scaler"] = {k: torch.tensor(told[k]) for k in SCALER}
    return files


def restore(
    checkpoint: Checkpoint, players: Sequence[TrainableNetwork], read: Read | None = None
) -> None:
    """Put a checkpoint back into networks and optimisers, whatever processes and strategy wrote it.

    read: gives a file's tensors, if not from where the checkpoint lies. Before `Engine.start`,
    which hands networks and optimisers over to the strategy.
    """
    read = read or checkpoint.read
    for player in players:
        for name, module in player.networks.items():
            load_tensors(read(name), module, store.display(checkpoint.url))
        parameters = dict(player.module.named_parameters())
        for full, tensor in read(f"{player.name}_optimizer").items():
            name, _, key = full.rpartition("/")
            parameter = parameters[name]
            if key == "step":
                tensor = tensor.to(parameter.device)  # where a fused optimiser wants it
            else:
                tensor = torch.empty_like(parameter).copy_(tensor)
            player.optimizer.state[parameter][key] = tensor
        if player.scaler is not None and f"{player.name}_scaler" in checkpoint.state["files"]:
            told = {k: t.item() for k, t in read(f"{player.name}_scaler").items()}
            player.scaler.load_state_dict({**player.scaler.state_dict(), **told})


def resume(
    config: TrainConfig, run: RunFolder, networks: Method, manifest: Manifest, engine: Engine
) -> TrainState:
    """Put the newest whole checkpoint, or the weights at `init=`, into networks and optimisers.

    Rank 0 reads every file, once, and shares it: the others need not see the run's folder.
    """
    mine = latest(run.url) if engine.is_main else None
    found = engine.broadcast_object(mine and Checkpoint(mine.url, mine.state))
    if found is None:
        if config.init is not None:
            lineage = initialise(config.init, config.root, networks, engine)
            if engine.is_main:
                update_run_json(run.url, init=lineage)
        return TrainState()
    if found.state["dataset"] != manifest.digest:
        raise ConfigError(other_dataset(run.url, found.state["dataset"], manifest))
    now = networks.pretrained.get("vgg16")  # in no checkpoint, as the discriminator's are
    before = found.state.get("pretrained", {}).get("vgg16", now)
    if now is not None and before != now:
        raise ConfigError(
            f"{store.display(run.url)} was trained towards features of {before[:12]} weights of "
            f"vgg16, here they are {now[:12]}: give it the same ones (by weights=random, or "
            f"weights= a folder or URL that holds them), or start another with run=NEW"
        )

    def read(name: str) -> dict[str, Tensor]:
        return parse(engine.broadcast_object(mine and mine.data(name)))

    restore(found, networks.players, read)
    return TrainState(**{f.name: found.state[f.name] for f in fields(TrainState)})


def initialise(init: str, root: str, networks: Method, engine: Engine) -> dict[str, Any]:
    """Weights of a run, a checkpoint or a registered model into the generator and its average.

    Returns the lineage: what was named, and whose weights it was, by hash. A run's averaged weights
    are taken where it has them, as everywhere. Rank 0 reads; what it refuses every rank refuses.
    """
    told: Any = None
    if engine.is_main:
        try:
            told = _registered(init, root) if init.startswith("models:") else _saved(init)
        except ValueError as error:
            told = error
    told = engine.broadcast_object(told)
    if isinstance(told, ValueError):
        raise told
    data, lineage = told
    tensors, source = parse(data), lineage.get("model_uri") or lineage["checkpoint"]
    for name, module in networks.generator.networks.items():
        load_tensors(tensors, module, f"init={init} ({source}) as {name}")
    return {"given": store.display(init), **lineage}


def _saved(init: str) -> tuple[bytes, dict[str, Any]]:
    """A checkpoint's generator; of a run the newest one whose is whole, a torn one is told of."""
    url, name = split_address(init)
    for found in [find(init)] if name else reversed(list_checkpoints(url)):
        averaged = "generator_ema" in found.state["files"]
        file = "generator_ema" if averaged else "generator"
        lineage = {
            "checkpoint": store.display(found.url),
            "images_seen": found.images_seen,
            "weights": "ema" if averaged else "raw",
            "sha256": found.state["files"][file]["sha256"],
        }
        try:
            return found.data(file), lineage
        except objects.StoreError:
            raise
        except (ValueError, FileNotFoundError):
            if name:
                raise ConfigError(
                    f"init={store.display(init)} is torn or corrupted: name another checkpoint, or "
                    f"its run for the newest that is whole"
                ) from None
            passed_over(found.url)
    raise ConfigError(f"init={store.display(init)} holds no whole checkpoint: name a run's folder")


def _registered(init: str, root: str) -> tuple[bytes, dict[str, Any]]:
    from pipeline.inference.sources import load_archive

    loaded, facts = load_archive(init, root=root)
    state = loaded.program.state_dict
    tensors = {k.removeprefix("generator."): t.data.contiguous() for k, t in state.items()}
    names = ("model_uri", "run", "images_seen", "weights", "weights_sha256", "sha256")
    return serialise(tensors), {name: facts[name] for name in names if name in facts}


def save(
    config: TrainConfig,
    networks: Method,
    engine: Engine,
    saver: Saver,
    manifest: Manifest,
    state: TrainState,
) -> None:
    """Hand a checkpoint to `saver`; all ranks call it, rank 0 writes. Each node's log goes too."""
    publish_log()
    files = files_of(networks.players)
    if engine.is_main:
        facts = {
            **asdict(state),
            "model": asdict(config.model),
            "dataset": manifest.digest,
            "pretrained": networks.pretrained,
            "world_size": engine.world_size,
        }
        saver.save(state.images_seen, files, facts)
