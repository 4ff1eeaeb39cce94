"""Checkpoints as files: which exist, which are intact, and loading them into networks.

`training.checkpointing` writes them. torch is imported late, because the launcher lists checkpoints
before any worker starts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.common.console import say
from pipeline.common.errors import ConfigError
from pipeline.runs.run_json import change_run_json
from shards import store

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
METRIC = "val/psnr"
NAME = re.compile(r"\d{12}")


class Corrupt(ValueError):
    """A file of a checkpoint is missing or has another checksum than its `state.json` says."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that exists: its URL and its `state.json`."""

    url: str
    state: dict[str, Any]
    cached: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def images_seen(self) -> int:
        return int(self.state["images_seen"])

    @property
    def name(self) -> str:
        return f"{self.images_seen:012d}"

    def generator(self, weights: str = "auto") -> tuple[str, str, str]:
        """Return the kind (raw or ema), file and sha256 of the generator's weights.

        weights: raw, ema, or auto (ema where the run has it).
        """
        files = self.state["files"]
        averaged = "generator_ema" in files
        if weights == "ema" and not averaged:
            raise ValueError(
                f"weights=ema: {store.display(self.url)} has no averaged weights: give weights=raw"
            )
        chosen = "ema" if averaged and weights != "raw" else "raw"
        file = "generator_ema" if chosen == "ema" else "generator"
        return chosen, file, files[file]["sha256"]

    def data(self, name: str) -> bytes:
        """Return one file's bytes, each cached by `latest` once. Raises Corrupt."""
        if name in self.cached:
            return self.cached.pop(name)
        try:
            data = store.read(store.join(self.url, f"{name}.safetensors"))
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.state["files"].get(name, {}).get("sha256"):
            raise Corrupt(
                f"{store.display(self.url)}/{name}.safetensors is corrupt (checksum mismatch): "
                f"give another checkpoint"
            )
        return data

    def read(self, name: str) -> dict[str, Tensor]:
        """Read one file's tensors to the CPU. Raises Corrupt."""
        from safetensors.torch import load

        return load(self.data(name))


def list_checkpoints(run_url: str) -> list[Checkpoint]:
    """List a run's checkpoints, oldest first, without reading tensors; skip invalid state.json."""
    base = store.join(run_url, "checkpoints")
    checkpoints = []
    for name in filter(NAME.fullmatch, store.names(base)):
        url = store.join(base, name)
        try:
            state = json.loads(store.read(store.join(url, "state.json")))
        except FileNotFoundError:
            continue
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            state = None
        if not isinstance(state, dict) or not isinstance(state.get("files", {}), dict):
            warn_corrupt(url)
            continue
        if state.get("schema") != SCHEMA:
            raise ValueError(
                f"{store.display(url)} has schema {state.get('schema')}, this version reads "
                f"{SCHEMA}: continue with the version that wrote it"
            )
        checkpoints.append(Checkpoint(url, state))
    return checkpoints


def is_whole(checkpoint: Checkpoint) -> bool:
    """Check every file's checksum; StoreError where the store cannot be read."""
    try:
        for name in checkpoint.state["files"]:
            checkpoint.data(name)
    except Corrupt:
        return False
    return True


def latest(run_url: str) -> Checkpoint | None:
    """Return the newest intact checkpoint with its bytes cached; warn of corrupt ones on stderr."""
    for checkpoint in reversed(list_checkpoints(run_url)):
        try:
            files = {name: checkpoint.data(name) for name in checkpoint.state["files"]}
        except Corrupt:
            warn_corrupt(checkpoint.url)
            continue
        checkpoint.cached.update(files)
        return checkpoint
    return None


def warn_corrupt(url: str) -> None:
    shown = store.display(url)
    say(f"skipping corrupt checkpoint {shown} (checksum mismatch)")


def remove(url: str) -> None:
    """Delete a checkpoint; `state.json` first, because without it the checkpoint does not exist."""
    store.remove(store.join(url, "state.json"))
    store.remove(url, recursive=True)


def split_address(url: str) -> tuple[str, str | None]:
    """Split a checkpoint's URL into its run's URL and its name; the name of a run's URL is None.

    `RUN/checkpoints/best` and `…/last` name what `find` selects.
    """
    run_url, _, name = url.rstrip("/").rpartition("/")
    if (NAME.fullmatch(name) or name in ("best", "last")) and run_url.endswith("/checkpoints"):
        return run_url.removesuffix("/checkpoints"), name
    return url, None


def find(url: str, which: str = "last", key: str = "") -> Checkpoint:
    """Find a checkpoint by its own URL, or its run's (`which`: last, best or images_seen).

    key: what gave the URL, as messages name it, such as `init=`.
    """
    url, name = split_address(url)
    which = name or which
    checkpoints = list_checkpoints(url)
    if not checkpoints:
        raise ValueError(f"{key}{store.display(url)} holds no checkpoint: give a run's folder")
    if which == "last":
        return checkpoints[-1]
    if which == "best":
        return max(checkpoints, key=score)
    for checkpoint in checkpoints:
        if which.isdigit() and checkpoint.images_seen == int(which):
            return checkpoint
    choices = ", ".join(str(c.images_seen) for c in checkpoints)
    raise ValueError(
        f"{key}{store.display(url)} has no checkpoint {which!r}: choose from last, best, {choices}"
    )


def score(checkpoint: Checkpoint) -> tuple[bool, float, int]:
    """Sort key of the best checkpoint: its validation PSNR, then its age.

    Last are those of phases that train nothing that makes images, such as a discriminator alone.
    """
    candidate = bool(checkpoint.state.get("trains_image", True))
    metric = float(checkpoint.state.get("metrics", {}).get(METRIC, "nan"))
    return (candidate, metric if metric == metric else float("-inf"), checkpoint.images_seen)


def images_saved(url: str) -> int:
    """Return `images_seen` of the newest checkpoint by its name; 0 where there is none."""
    base = store.join(url, "checkpoints")
    for name in reversed(store.names(base)):
        if name.isdigit() and store.exists(store.join(base, name, "state.json")):
            return int(name)
    return 0


def build_generator(model: Mapping[str, Any]) -> nn.Module:
    """Build a generator from its configuration: `name` and the options of its class."""
    from models import GENERATORS

    options = {k: v for k, v in model.items() if k != "name"}
    name = model["name"]
    if name not in GENERATORS:  # of a folder outside the checkout
        try:
            GENERATORS[name] = import_module(f"models.{name}").GENERATOR
        except ModuleNotFoundError as error:
            if error.name != f"models.{name}":
                raise
            hint = "give methods.path= the folder that has it"
            raise ConfigError(f"model={name} is not here: {hint}") from None
    return GENERATORS[name](**options)


def load_generator(
    url: str, which: str = "last", weights: str = "auto", key: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """Load the generator of a run or checkpoint, on the CPU in fp32 and evaluation mode.

    weights: raw, ema, or auto (ema where the run has it). Second result: the checkpoint's state
    with `run`, `url`, `weights` and their `sha256` added.
    """
    checkpoint = find(url, which, key)
    chosen, file, sha256 = checkpoint.generator(weights)
    generator = build_generator(checkpoint.state["model"])
    load_tensors(checkpoint.read(file), generator, store.display(checkpoint.url))
    run = checkpoint.url.rsplit("/checkpoints/", 1)[0]
    info = {"run": run, "url": checkpoint.url, "weights": chosen, "sha256": sha256}
    return generator.eval(), {**checkpoint.state, **info}


def load_tensors(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Copy tensors by name into a network; ValueError, naming `source`, if they do not fit."""
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
    """Keep this checkpoint for good: an evaluation or the registry refers to it."""
    change_run_json(
        run_url, lambda facts: {"pinned": sorted({*facts.get("pinned", []), images_seen})}
    )
