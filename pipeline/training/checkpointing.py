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
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from models import GENERATORS
from pipeline.runs.checkpoints import NAME, SCHEMA, Checkpoint, checkpoints, find, is_whole, score
from pipeline.runs.checkpoints import latest as latest
from pipeline.runs.folder import read_run_json, update_run_json
from pipeline.runs.identity import RunFolder, folder_at
from pipeline.training.network import Trainee
from shards import store

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
        every = [c for c in checkpoints(self.run.url) if c.name <= newest.name]
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


def build_generator(model: Mapping[str, Any]) -> nn.Module:
    """A generator from its configuration: `name` and the options of its class."""
    options = {k: v for k, v in model.items() if k != "name"}
    return GENERATORS[model["name"]](**options)


def load_generator(
    url: str, which: str = "last", weights: str = "auto"
) -> tuple[nn.Module, dict[str, Any]]:
    """The generator of a run or checkpoint, on the CPU in fp32 and evaluation mode.

    weights: raw, ema, or auto (ema where the run has it). Second: what its state says, with `run`,
    `url` and `weights` added.
    """
    checkpoint = find(url, which)
    averaged = "generator_ema" in checkpoint.state["files"]
    if weights == "ema" and not averaged:
        raise ValueError(f"{store.display(checkpoint.url)} has no averaged weights: weights=raw")
    chosen = "ema" if averaged and weights != "raw" else "raw"
    generator = build_generator(checkpoint.state["model"])
    load_weights(generator, checkpoint, "generator_ema" if chosen == "ema" else "generator")
    run = checkpoint.url.rsplit("/checkpoints/", 1)[0]
    info = {**checkpoint.state, "run": run, "url": checkpoint.url, "weights": chosen}
    return generator.eval(), info


def load_weights(module: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Copy one file's tensors into a network; ValueError where it is another network's."""
    put(checkpoint.read(name), module, store.display(checkpoint.url))


def put(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Copy tensors by name into a network; ValueError, naming `source`, where they do not fit."""
    own = module.state_dict()
    wrong = sorted(
        k
        for k in tensors.keys() | own.keys()
        if k not in tensors or k not in own or tensors[k].shape != own[k].shape
    )
    if wrong:
        raise ValueError(
            f"{source} holds another architecture: {len(wrong)} tensors "
            f"differ, first {wrong[0]}; use the model= and widths that it was trained with"
        )
    module.load_state_dict(tensors)


def pin(run_url: str, images_seen: int) -> None:
    """Keep a checkpoint for good: something names it (an evaluation, the registry)."""
    run = folder_at(run_url)
    kept = set(read_run_json(run.url).get("pinned", [])) | {images_seen}
    update_run_json(run.url, pinned=sorted(kept))


def files_of(trainees: Sequence[Trainee]) -> Files:
    """Everything of the networks in training that a bit-exact resume needs; all ranks call it."""
    files: Files = {}
    for trainee in trainees:
        files[trainee.name] = trainee.weights()
        if trainee.ema is not None:
            files[f"{trainee.name}_ema"] = dict(trainee.ema.state_dict())
        files[f"{trainee.name}_optimizer"] = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, state in trainee.moments().items()
            for key, value in state.items()
        }
        if trainee.scaler is not None:
            told = trainee.scaler.state_dict()
            files[f"{trainee.name}_scaler"] = {k: torch.tensor(told[k]) for k in SCALER}
    return files


def restore(checkpoint: Checkpoint, trainees: Sequence[Trainee], read: Read | None = None) -> None:
    """Put a checkpoint back into networks and optimisers, whatever processes and strategy wrote it.

    read: gives a file's tensors, if not from where the checkpoint lies. Before `Engine.start`,
    which hands networks and optimisers over to the strategy.
    """
    read = read or checkpoint.read
    for trainee in trainees:
        for name, module in trainee.networks.items():
            put(read(name), module, store.display(checkpoint.url))
        parameters = dict(trainee.module.named_parameters())
        for full, tensor in read(f"{trainee.name}_optimizer").items():
            name, _, key = full.rpartition("/")
            parameter = parameters[name]
            if key == "step":
                tensor = tensor.to(parameter.device)  # where a fused optimiser wants it
            else:
                tensor = torch.empty_like(parameter).copy_(tensor)
            trainee.optimizer.state[parameter][key] = tensor
        if trainee.scaler is not None and f"{trainee.name}_scaler" in checkpoint.state["files"]:
            told = {k: t.item() for k, t in read(f"{trainee.name}_scaler").items()}
            trainee.scaler.load_state_dict({**trainee.scaler.state_dict(), **told})
