"""Where a run goes on from: its own checkpoint, or weights of another run or a registered model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from pipeline import checkpoint
from pipeline.compose import ConfigError
from pipeline.config import TrainConfig
from pipeline.engine import Engine
from pipeline.identity import RunFolder
from pipeline.method import Method
from pipeline.runfolder import update_run_json
from shards import store
from shards.manifest import Manifest


@dataclass
class State:
    """Where the run stands: with the networks, all that a resume needs."""

    images_seen: int = 0
    skipped: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # what the data position belongs to


def resume(
    config: TrainConfig, run: RunFolder, networks: Method, manifest: Manifest, engine: Engine
) -> State:
    """Put the newest whole checkpoint, or the weights at `init=`, into networks and optimisers."""
    found = checkpoint.latest(run.url) if engine.is_main else None
    chosen = engine.gather(found and found.name)[0]  # the others need not look for a whole one
    if chosen is not None and not engine.is_main:
        found = next((c for c in checkpoint.checkpoints(run.url) if c.name == chosen), None)
        if found is None:  # a shared disk shows a new file to other nodes after a while
            raise RuntimeError(
                f"{store.display(run.url)}: rank 0 goes on from checkpoint {chosen}, which rank "
                f"{engine.rank} does not see: start again once every node sees the same files"
            )
    if found is None:
        if config.init is not None:
            lineage = initialise(config.init, config.root, networks)
            if engine.is_main:
                update_run_json(run.url, init=lineage)
        return State()
    if found.state["dataset"] != manifest.digest:
        raise ConfigError(
            f"{store.display(run.url)} was trained on {found.state['dataset'][:12]}, "
            f"{store.display(manifest.url)} is {manifest.digest[:12]}: give the same data.url="
        )
    checkpoint.restore(found, networks.trainees)
    return State(**{f.name: found.state[f.name] for f in fields(State)})


def initialise(init: str, root: str, networks: Method) -> dict[str, Any]:
    """Weights of a run, a checkpoint or a registered model into the generator and its average.

    Returns the lineage: what was named, and whose weights it was, by hash. A run's averaged weights
    are taken where it has them, as everywhere.
    """
    if init.startswith("models:"):
        tensors, lineage = _registered(init, root)
        source = lineage["model_uri"]
    else:
        found = checkpoint.find(init)
        averaged = "generator_ema" in found.state["files"]
        name = "generator_ema" if averaged else "generator"
        tensors, source = found.read(name), store.display(found.url)
        lineage = {
            "checkpoint": source,
            "images_seen": found.images_seen,
            "weights": "ema" if averaged else "raw",
            "sha256": found.state["files"][name]["sha256"],
        }
    for name, module in networks.generator.networks.items():
        checkpoint.put(tensors, module, f"init={init} ({source}) as {name}")
    return {"given": store.display(init), **lineage}


def _registered(init: str, root: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from pipeline.registry import load_archive

    loaded, facts = load_archive(init, root=root)
    state = loaded.program.state_dict
    tensors = {name.removeprefix("generator."): tensor.data for name, tensor in state.items()}
    names = ("model_uri", "run", "images_seen", "weights", "weights_sha256", "sha256")
    return tensors, {name: facts[name] for name in names if name in facts}


def save(
    config: TrainConfig,
    networks: Method,
    engine: Engine,
    saver: checkpoint.Saver,
    manifest: Manifest,
    state: State,
) -> None:
    """Hand a checkpoint to `saver`; all ranks call it, rank 0 writes."""
    files = checkpoint.files_of(networks.trainees)
    if engine.is_main:
        facts = {
            **asdict(state),
            "model": asdict(config.model),
            "dataset": manifest.digest,
            "world_size": engine.world_size,
        }
        saver.save(state.images_seen, files, facts)
