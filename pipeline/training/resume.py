"""Where a run goes on from: its own checkpoint, or weights of another run or a registered model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from pipeline.config.compose import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.workers import publish_log
from pipeline.runs import checkpoints as stored
from pipeline.runs.folder import update_run_json
from pipeline.runs.identity import RunFolder, other_dataset
from pipeline.training import checkpointing as checkpoint
from pipeline.training.engine import Engine
from pipeline.training.method import Method
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
    """Put the newest whole checkpoint, or the weights at `init=`, into networks and optimisers.

    Rank 0 reads every file, once, and shares it: the others need not see the run's folder.
    """
    mine = stored.latest(run.url) if engine.is_main else None
    found = engine.share(mine and stored.Checkpoint(mine.url, mine.state))
    if found is None:
        if config.init is not None:
            lineage = initialise(config.init, config.root, networks, engine)
            if engine.is_main:
                update_run_json(run.url, init=lineage)
        return State()
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
        return parse(engine.share(mine and mine.data(name)))

    checkpoint.restore(found, networks.trainees, read)
    return State(**{f.name: found.state[f.name] for f in fields(State)})


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
    told = engine.share(told)
    if isinstance(told, ValueError):
        raise told
    data, lineage = told
    tensors, source = parse(data), lineage.get("model_uri") or lineage["checkpoint"]
    for name, module in networks.generator.networks.items():
        checkpoint.put(tensors, module, f"init={init} ({source}) as {name}")
    return {"given": store.display(init), **lineage}


def _saved(init: str) -> tuple[bytes, dict[str, Any]]:
    """A checkpoint's generator; of a run the newest one whose is whole, a torn one is told of."""
    url, name = stored.address(init)
    for found in [stored.find(init)] if name else reversed(stored.checkpoints(url)):
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
        except store.StoreError:
            raise
        except (ValueError, FileNotFoundError):
            if name:
                raise ConfigError(
                    f"init={store.display(init)} is torn or corrupted: name another checkpoint, or "
                    f"its run for the newest that is whole"
                ) from None
            stored.passed_over(found.url)
    raise ConfigError(f"init={store.display(init)} holds no whole checkpoint: name a run's folder")


def _registered(init: str, root: str) -> tuple[bytes, dict[str, Any]]:
    from pipeline.registry.register import load_archive

    loaded, facts = load_archive(init, root=root)
    state = loaded.program.state_dict
    tensors = {k.removeprefix("generator."): t.data.contiguous() for k, t in state.items()}
    names = ("model_uri", "run", "images_seen", "weights", "weights_sha256", "sha256")
    return serialise(tensors), {name: facts[name] for name in names if name in facts}


def save(
    config: TrainConfig,
    networks: Method,
    engine: Engine,
    saver: checkpoint.Saver,
    manifest: Manifest,
    state: State,
) -> None:
    """Hand a checkpoint to `saver`; all ranks call it, rank 0 writes. Each node's log goes too."""
    publish_log()
    files = checkpoint.files_of(networks.trainees)
    if engine.is_main:
        facts = {
            **asdict(state),
            "model": asdict(config.model),
            "dataset": manifest.digest,
            "pretrained": networks.pretrained,
            "world_size": engine.world_size,
        }
        saver.save(state.images_seen, files, facts)
