"""Where training starts from: the newest checkpoint of the run, or the weights at `init=`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.runs.checkpoints import (
    Checkpoint,
    find,
    latest,
    load_tensors,
    split_address,
)
from pipeline.runs.folder import RunFolder
from pipeline.runs.identity import other_dataset
from pipeline.runs.run_json import update_run_json
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.network import TrainableNetwork
from pipeline.training.progress import TrainState
from shards import store
from shards.manifest import Manifest

Read = Callable[[str], dict[str, Tensor]]


def restore(
    checkpoint: Checkpoint, players: Sequence[TrainableNetwork], read: Read | None = None
) -> None:
    """Load a checkpoint into networks and optimizers, whatever world size and strategy wrote it.

    read: returns one file's tensors; default from the checkpoint's URL. Call it before
    `Engine.start`, which hands networks and optimizers over to the strategy.
    """
    read = read or checkpoint.read
    for player in players:
        for name, module in player.networks.items():
            load_tensors(own(player, read(name)), module, store.display(checkpoint.url))
        parameters = dict(player.module.named_parameters())
        for full, tensor in read(f"{player.name}_optimizer").items():
            name, _, key = full.rpartition("/")
            parameter = parameters[name]
            if key == "step":
                tensor = tensor.to(parameter.device)  # a fused optimizer requires it there
            else:
                tensor = torch.empty_like(parameter).copy_(tensor)
            player.optimizer.state[parameter][key] = tensor
        if player.scaler is not None and f"{player.name}_scaler" in checkpoint.state["files"]:
            scaler = {k: t.item() for k, t in read(f"{player.name}_scaler").items()}
            player.scaler.load_state_dict({**player.scaler.state_dict(), **scaler})


def own(player: TrainableNetwork, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select a player's tensors of a file that it may share, by their names in its module."""
    _, prefix = player.file
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def resume(
    config: TrainConfig, run: RunFolder, networks: Method, manifest: Manifest, engine: Engine
) -> TrainState:
    """Load the newest intact checkpoint, or the weights at `init=`; returns the training state.

    Rank 0 reads every file once and broadcasts it: other nodes need not see the run's folder.
    """
    newest = latest(run.url) if engine.is_main else None
    checkpoint = engine.broadcast_object(newest and Checkpoint(newest.url, newest.state))
    if checkpoint is None:
        if config.init is not None:
            lineage = initialize(config.init, config.root, networks, engine)
            if engine.is_main:
                update_run_json(run.url, init=lineage)
        return TrainState()
    if checkpoint.state["dataset"] != manifest.digest:
        raise ConfigError(other_dataset(run.url, checkpoint.state["dataset"], manifest))
    # Losses depend on the weights of fixed networks, which no checkpoint holds.
    for name in networks.fixed:
        now = networks.pretrained[name]
        before = checkpoint.state.get("pretrained", {}).get(name, now)
        if before != now:
            raise ConfigError(
                f"cannot resume {store.display(run.url)} with {name} weights {now[:12]}: it was "
                f"trained with {before[:12]}; give those (weights=random, or weights= a folder or "
                f"URL that holds them), or start a new run with run=NEW"
            )

    def read(name: str) -> dict[str, Tensor]:
        return parse(engine.broadcast_object(newest and newest.data(name)))

    restore(checkpoint, networks.players, read)
    return TrainState(**{f.name: checkpoint.state[f.name] for f in fields(TrainState)})


def initialize(init: str, root: str, networks: Method, engine: Engine) -> dict[str, Any]:
    """Load weights of a run, checkpoint or registered model into the generator and its average.

    Returns the lineage: the source as given, and the hash of its weights. Averaged weights are
    preferred, as everywhere. Rank 0 reads; its errors are raised on every rank.
    """
    is_model = init.startswith("models:")
    data, lineage = engine.from_main(
        lambda: _weights_of_model(init, root) if is_model else _weights_of_run(init)
    )
    tensors, source = parse(data), lineage.get("model_uri") or lineage["checkpoint"]
    for player in networks.fillers:
        for name, module in player.networks.items():
            load_tensors(own(player, tensors), module, f"init={init} ({source}) as {name}")
    return {"given": store.display(init), **lineage}


def _weights_of_run(init: str) -> tuple[bytes, dict[str, Any]]:
    """Read a checkpoint's generator; of a run the newest intact one, with a warning of others."""
    checkpoint = find(init) if split_address(init)[1] else latest(init)
    if checkpoint is None:
        raise ConfigError(
            f"init={store.display(init)} holds no intact checkpoint: give a run's folder"
        )
    chosen, file, sha256 = checkpoint.generator()
    return checkpoint.data(file), {
        "checkpoint": store.display(checkpoint.url),
        "images_seen": checkpoint.images_seen,
        "weights": chosen,
        "sha256": sha256,
    }


def _weights_of_model(init: str, root: str) -> tuple[bytes, dict[str, Any]]:
    from pipeline.inference.sources import load_archive

    loaded, facts = load_archive(init, root=root)
    state = loaded.program.state_dict
    tensors = {k.removeprefix("generator."): t.data.contiguous() for k, t in state.items()}
    names = ("model_uri", "run", "images_seen", "weights", "weights_sha256", "sha256")
    return serialize(tensors), {name: facts[name] for name in names if name in facts}
