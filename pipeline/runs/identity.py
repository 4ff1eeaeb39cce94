"""Which run a configuration means: the hash that names it, and what may change on resume."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pipeline.common.errors import ConfigError
from pipeline.config.resolve import leaves
from pipeline.config.schema import TrainConfig
from pipeline.runs.checkpoints import images_saved
from pipeline.runs.folder import RunFolder, folder_at
from shards import store

if TYPE_CHECKING:
    from shards.manifest import Manifest

# No part of what a run computes, and may change when it is resumed.
MUTABLE = (
    "run",
    "root",
    "smoke",
    "weights",
    "max_images",
    "processes",
    "accumulate",
    "parallel.strategy",
    "parallel.hang_timeout",
    "checkpoint.",
    "cluster.",
    "tracking.",
)
ASIDE = ("run", "root", "smoke")  # of these: nothing that somebody would want to change
# No part of what names a run either, but its bits depend on them: fixed once it has started.
FIXED = ("threads", "loader_threads", "log.")
AUTO = ("threads", "precision")


def science(config: TrainConfig) -> dict[str, Any]:
    """What a run computes, by dotted key; its hash names the run."""
    return {k: v for k, v in fixed(config).items() if not k.startswith(FIXED)}


def fixed(config: TrainConfig) -> dict[str, Any]:
    """What may not change when a run is resumed; of `data.url` only the digest of what is there."""
    return {k: _plain(k, v) for k, v in leaves(config) if not k.startswith(MUTABLE)}


def folder_of(config: TrainConfig) -> RunFolder:
    """The run's folder; without `run=` it is named by its recipe and the hash of its science."""
    if config.run is not None:
        return folder_at(config.run)
    text = json.dumps(science(config), sort_keys=True)
    recipe = (config.experiment or "train").replace("/", "-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return folder_at(store.join(config.root, f"{recipe}-{digest}"))


def saved_config(url: str) -> Any:
    """What a run's config.yaml says, or None where there is none."""
    try:
        return OmegaConf.create(store.read(store.join(url, "config.yaml")).decode())
    except FileNotFoundError:
        return None


def check_same(config: TrainConfig, run: RunFolder) -> None:
    """Refuse, by name, to resume a run as another, or to take a folder that is no run's.

    Before its first checkpoint a run may still become another: there is nothing to go on from.
    """
    if store.is_local(run.url) and run.local.exists() and not run.local.is_dir():
        raise ConfigError(f"run={run.url} is a file: name a folder")
    saved = saved_config(run.url)
    if saved is None:
        strangers = [n for n in store.names(run.url) if not n.startswith(".")]
        if strangers and not {"run.json", "logs", "spool"} & set(strangers):
            raise ConfigError(
                f"run={store.display(run.url)} is no run but holds {strangers[0]}"
                f"{' and more' if len(strangers) > 1 else ''}: name an empty or a new folder"
            )
        return
    if images_saved(run.url) and (other := difference(config, saved)):
        name, old, value = other
        raise ConfigError(
            f"{store.display(run.url)} was started with {name}={old}, now it is {value}: resume it "
            f"with the same, or {_another(run.url, carries=not name.startswith('model.'))}"
        )


def other_dataset(run_url: str, before: str, now: Manifest) -> str:
    """Why a run does not go on with another dataset; digests of both."""
    return (
        f"{store.display(run_url)} was trained on {before[:12]}, {store.display(now.url)} is "
        f"{now.digest[:12]}: give the same set by data.url=, or {_another(run_url)}"
    )


def _another(run_url: str, carries: bool = True) -> str:
    """What to give for a change that a resume refuses; `carries`: the weights fit it still."""
    weights = f" (init={store.display(run_url)} takes these weights along)" if carries else ""
    may = ", ".join(
        f"{name}*" if name.endswith(".") else name for name in MUTABLE if name not in ASIDE
    )
    return f"start another with run=NEW{weights}; what may change is {may}"


def difference(config: TrainConfig, saved: Any) -> tuple[str, Any, Any] | None:
    """The first key, with its old and its new value, in which `config` is another run than `saved`.

    `data.url` may change (its digest may not), and `auto` means what it meant at the first start.
    A key that `saved` lacks had its default: a new key's default reproduces the old arithmetic.
    """
    defaults = dict(leaves(replace(TrainConfig(), model=type(config.model)())))
    for name, value in fixed(config).items():
        old = OmegaConf.select(saved, name, default=defaults[name])
        old = _plain(name, OmegaConf.to_container(old) if OmegaConf.is_config(old) else old)
        if old != value and name != "data.url" and "auto" not in (old, value):
            return name, old, value
    return None


def settled(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """`config` with what `auto` came to when the run was first started."""
    saved = saved_config(run.url)
    if saved is None or not images_saved(run.url):
        return config
    known = {n: saved[n] for n in AUTO if getattr(config, n) == "auto" and n in saved}
    return replace(config, **known)


def write_config(config: TrainConfig, run: RunFolder) -> None:
    """config.yaml: resolved and complete; what `train run=` alone reads."""
    text = OmegaConf.to_yaml(OmegaConf.structured(replace(config, run=run.url)))
    store.write(str(run.local / "config.yaml"), text.encode())


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(name, v) for v in value]
    if is_dataclass(value):
        return {f.name: _plain(f.name, getattr(value, f.name)) for f in fields(value)}
    if name.endswith("url") and isinstance(value, str) and store.is_local(value):
        return os.path.normpath(store.local(value))
    return value
