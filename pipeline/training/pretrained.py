"""Which ImageNet weights an objective takes, and the files that hold them.

`train weights=` says where they lie: `cache` (what `fetch` wrote), a folder or URL of such files,
or `random` for none. Nothing here imports torch, so that a launcher can refuse what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, deserialize

from pipeline.common.errors import ConfigError
from pipeline.config.groups import ObjectiveConfig
from pipeline.config.schema import CACHE, RANDOM, TrainConfig
from shards import objects, store


def needed(objective: ObjectiveConfig) -> list[str]:
    """Names of the networks that start from published weights."""
    compares = bool(objective.perceptual or objective.style)
    vgg16 = ["vgg16"] if compares and objective.features == "vgg16" else []
    return vgg16 + (["densenet121"] if objective.adv and objective.d_pretrained else [])


def folder() -> str:
    """Where `fetch` puts the files, absolute."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.path.abspath(Path(home) / "lacuna" / "weights")


def place(weights: str, name: str) -> str:
    """Path or URL of the file that `weights=` means for one network."""
    return store.join(folder() if weights == CACHE else weights, f"{name}.safetensors")


def from_cache(config: TrainConfig) -> list[str]:
    """The files that this configuration takes from the cache of whoever runs it."""
    return needed(config.objective) if config.weights == CACHE else []


def located(config: TrainConfig) -> TrainConfig:
    """The submitter's cache by its path, for jobs that see his disks: their own may be another.

    Pods see none of them: `submit` copies the files into the job's folder.
    """
    if config.cluster.scheduler == "kubernetes" or not from_cache(config):
        return config
    return replace(config, weights=folder())


def check(config: TrainConfig) -> None:
    """Refuse weights that are missing or damaged."""
    for name in needed(config.objective) if config.weights != RANDOM else ():
        read(config.weights, name)


def read(weights: str, name: str) -> bytes:
    """The whole file. ConfigError where it is missing or damaged, StoreError where no store
    answers."""
    url = place(weights, name)
    shown = f"weights={store.display(weights)}: {store.display(url)}"
    fix = (
        f"run `python -m pipeline fetch {name}`, name a folder or URL that holds "
        f"{name}.safetensors by weights=, or train on untrained features by weights=random"
    )
    try:
        data = store.read(url)
    except objects.StoreError:
        raise
    except OSError as error:
        reason = (error.strerror or "not there").lower()
        raise ConfigError(
            f"the objective needs the ImageNet weights of {name}; {shown} cannot be read "
            f"({reason}): {fix}"
        ) from None
    if damage := _damage(data):
        raise ConfigError(f"{shown} is damaged ({damage}): {fix}")
    return data


def facts(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return found


def digest(data: bytes) -> str:
    """sha256 of the tensors of a safetensors file, whatever its metadata."""
    return hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _damage(data: bytes) -> str | None:
    try:
        deserialize(data)
    except SafetensorError as error:
        return " ".join(str(error).split())[:120]
    told = facts(data).get("tensors", digest(data))  # files of earlier versions do not say it
    return None if told == digest(data) else "its tensors are not those that were fetched"
