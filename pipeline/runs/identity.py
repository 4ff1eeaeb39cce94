"""Which run a configuration means: the hash that names it, and what may change on resume."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pipeline.common.errors import ConfigError
from pipeline.config import outside
from pipeline.config.former import FORMER
from pipeline.config.methods import METHODS, method_of
from pipeline.config.resolve import leaves, plain, to_yaml
from pipeline.config.schema import TrainConfig
from pipeline.runs.folder import RunFolder, folder_at
from shards import store

if TYPE_CHECKING:
    from shards.manifest import Manifest

# Not part of what a run computes: may change on resume.
MAY_CHANGE = (
    "run",
    "root",
    "smoke",
    "profile",
    "weights",
    "max_images",
    "processes",
    "accumulate",
    "parallel.strategy",
    "parallel.hang_timeout",
    "parallel.restart_in_place",
    "checkpoint.",
    "cluster.",
    "tracking.",
    "methods.",
)
UNLISTED = ("run", "root", "smoke", "profile")  # may change, but not worth suggesting to a user
# Not part of the hash that names a run, but its bits depend on them: fixed once it has started.
FIXED_AT_START = ("threads", "loader_threads", "log.", "data.lanes")
# Shown in MLflow, whether or not they differ from the recipe. What may change on resume is listed
# here or not shown at all: a value that appears later would seem to hold from the start.
SHOWN = (
    "experiment", "seed", "batch", "max_images", "model.name", "objective.method", "data.name",
    "precision", "processes", "accumulate", "parallel.strategy",
)  # fmt: skip
# Keys of later versions, at the value that computes what versions without them did.
LATER: dict[str, Any] = {
    "lr_scale": 1.0, "objective.span": 1.0, "model.reduce": True, "model.renormalize": "all",
    "masks.sides": [], "model.stem_bias": False, "parallel.deterministic": True,
    "rates": {}, "every": {}, "frozen": [], "without": [], "warmup": 0, "decay": "constant",
}  # fmt: skip
# Keys of the network that no weight depends on: `init=` can start a run with another value.
WEIGHTLESS = ("model.renormalize", "model.temperature", "model.propagation", "model.taps")
AUTO = ("threads", "precision")
# Keys of the first two methods, which were those of any run before methods had their own.
FIRST_METHODS = {
    name: value
    for method in ("msanet", "musical")
    for name, value in leaves(METHODS[method](), "objective.")
    if name not in ("objective.method", "objective.phases")
}


def hashed_values(config: TrainConfig) -> dict[str, Any]:
    """Return what a run computes, by dotted key; its hash names the run."""
    values = immutable_values(config)
    known = {k: v for k, v in values.items() if k != "objective.method"}
    if method_of(known) == config.objective.method:  # as before there was a key for the method
        values = {**FIRST_METHODS, **known}
    return {
        FORMER.get(k, k): v
        for k, v in values.items()
        if not k.startswith(FIXED_AT_START) and LATER.get(k, ...) != v
    }


def immutable_values(config: TrainConfig) -> dict[str, Any]:
    """Return what may not change on resume; of `data.url` only the set's digest counts."""
    return {k: _plain(k, v) for k, v in leaves(config) if not k.startswith(MAY_CHANGE)}


def folder_of(config: TrainConfig) -> RunFolder:
    """Open the configured run; without `run=` its recipe and the hash of its values name it."""
    if config.run is not None:
        return folder_at(config.run)
    return folder_at(store.join(config.root, _default_name(config)))


def _default_name(config: TrainConfig) -> str:
    text = json.dumps(hashed_values(config), sort_keys=True)
    recipe = (config.experiment or "train").replace("/", "-")
    return f"{recipe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def title(config: TrainConfig, url: str) -> str:
    """Return a run's name in MLflow: its folder's, with what differs from the recipe.

    A folder that the user named says enough.
    """
    name = store.name(url)
    if name != _default_name(config):
        return name
    changed = {k: plain(v) for k, v in (_changes(config) or {}).items()}
    for chooser in changed.keys() & {"model.name", "objective.method", "data.name"}:
        section = chooser.partition(".")[0] + "."  # the other keys of the section follow from it
        changed = {k: v for k, v in changed.items() if k == chooser or not k.startswith(section)}
    words = [f"{k}={v if len(v) <= 24 else v[:23] + '…'}" for k, v in changed.items()]
    more = [f"+{len(words) - 3}"] if len(words) > 3 else []
    return " ".join([name, *words[:3], *more])


def shown_values(config: TrainConfig) -> dict[str, Any]:
    """Return the values that MLflow shows: `SHOWN`, and what differs from the recipe."""
    kept = {k: v for k, v in leaves(config) if k in SHOWN}
    changed = _changes(config)
    return kept | (immutable_values(config) if changed is None else changed)


def _changes(config: TrainConfig) -> dict[str, Any] | None:
    """Return what differs from the recipe; None for a recipe of another checkout or site."""
    from pipeline.config.compose import compose  # hydra, for this alone

    recipe = [f"experiment={config.experiment}"] if config.experiment else []
    try:
        start = compose("train", [*recipe, f"data.url={config.data.url}"]).config
    except ConfigError:
        return None
    before = immutable_values(start)
    return {
        k: v
        for k, v in immutable_values(config).items()
        if not k.startswith(FIXED_AT_START) and before.get(k, ...) != v
    }


def check_same(config: TrainConfig, run: RunFolder) -> None:
    """Refuse to resume with a changed configuration, or to train in a folder of other files.

    Before the first checkpoint any value may change: there is nothing to resume.
    """
    if store.is_local(run.url) and run.local.exists() and not run.local.is_dir():
        raise ConfigError(f"run={run.url} is a file: give a folder")
    if run.config is None:
        files = [n for n in store.names(run.url) if not n.startswith(".")]
        if files and not {"run.json", "logs", "spool"} & set(files):
            raise ConfigError(
                f"run={store.display(run.url)} is not a run but holds {files[0]}"
                f"{' and more' if len(files) > 1 else ''}: give an empty or a new folder"
            )
    elif run.images_saved and (change := changed_key(config, run.config)):
        name, old, value = change
        reusable = not name.startswith("model.") or name in WEIGHTLESS
        raise ConfigError(
            f"cannot resume {store.display(run.url)} with {name}={value}: it was started with "
            f"{name}={old}; give {name}={old}, or "
            f"{_new_run(run.url, reusable)}"
        )


def other_dataset(run_url: str, before: str, now: Manifest) -> str:
    """Return the error text for a resume with another dataset; names both digests."""
    return (
        f"cannot resume {store.display(run_url)} with data.url={store.display(now.url)} (digest "
        f"{now.digest[:12]}): it was trained on a set with digest {before[:12]}; give that set by "
        f"data.url=, or {_new_run(run_url)}"
    )


def check_methods(config: TrainConfig, run: RunFolder) -> None:
    """Refuse to resume with other files in `methods.path=` than the run was started with."""
    now = outside.digest(config.methods.path) if config.methods.path else None
    if run.images_saved and run.facts.get("methods") != now:
        raise ConfigError(
            f"cannot resume {store.display(run.url)}: the files of methods.path="
            f"{config.methods.path} are not those that it was started with; give those, or "
            f"{_new_run(run.url)}"
        )


def _new_run(run_url: str, reusable: bool = True) -> str:
    """Return how to make a change that a resume refuses; `reusable`: the weights still fit."""
    weights = f" (init={store.display(run_url)} starts from these weights)" if reusable else ""
    allowed = ", ".join(
        f"{name}*" if name.endswith(".") else name for name in MAY_CHANGE if name not in UNLISTED
    )
    return f"start a new run with run=NEW{weights}; only these keys may change on resume: {allowed}"


def changed_key(config: TrainConfig, saved: Any) -> tuple[str, Any, Any] | None:
    """Find the first key whose value differs from the saved run's: (key, old value, new value).

    `data.url` may change (its digest may not), and `auto` means its value at the first start.
    A key that `saved` lacks counts as its default; so the default of a new key must reproduce the
    arithmetic of older versions.
    """
    sections: dict[str, Any] = {
        "model": type(config.model)(),
        "objective": type(config.objective)(),
    }
    defaults = dict(leaves(replace(TrainConfig(), **sections)))
    for name, value in immutable_values(config).items():
        former = OmegaConf.select(saved, FORMER.get(name, name), default=defaults[name])
        old = OmegaConf.select(saved, name, default=former)
        old = _plain(name, OmegaConf.to_container(old) if OmegaConf.is_config(old) else old)
        if old != value and name != "data.url" and "auto" not in (old, value):
            return name, old, value
    return None


def resolve_auto(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """Replace `auto` by the value that it had when the run was first started."""
    saved = run.config
    if saved is None or not run.images_saved:
        return config
    known = {n: saved[n] for n in AUTO if getattr(config, n) == "auto" and n in saved}
    if config.data.lanes == "auto":
        lanes = OmegaConf.select(saved, "data.lanes", default="192")  # of runs before the key
        known["data"] = replace(config.data, lanes=lanes)
    return replace(config, **known)


def write_config(config: TrainConfig, run: RunFolder) -> None:
    """Write config.yaml, resolved and complete; `train run=` alone reads it."""
    store.write(str(run.local / "config.yaml"), to_yaml(replace(config, run=run.url)).encode())


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(name, v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: _plain(k, v) for k, v in value.items() if LATER.get(k, ...) != v}
    if name.endswith("url") and isinstance(value, str) and store.is_local(value):
        return os.path.normpath(store.local(value))
    return value
