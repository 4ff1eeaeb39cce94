"""Checkpoints as files: which exist, which are whole, and networks filled from them.

`training.checkpointing` writes them. torch is imported late: the launcher looks here before any
worker starts.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json, update_run_json
from shards import objects, store

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
METRIC = "val/psnr"
NAME = re.compile(r"\d{12}")


@dataclass(frozen=True)
class Checkpoint:
    """One that exists: where it is and what its `state.json` says."""

    url: str
    state: dict[str, Any]
    held: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def images_seen(self) -> int:
        return int(self.state["images_seen"])

    @property
    def name(self) -> str:
        return f"{self.images_seen:012d}"

    def data(self, name: str) -> bytes:
        """One file's bytes, those that `latest` read once; ValueError where they are others."""
        if name in self.held:
            return self.held.pop(name)
        data = store.read(store.join(self.url, f"{name}.safetensors"))
        expected = self.state["files"].get(name, {}).get("sha256")
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{store.display(self.url)}/{name}.safetensors is torn or corrupted")
        return data

    def read(self, name: str) -> dict[str, Tensor]:
        """Tensors of one file, on the CPU; ValueError where its bytes are not those written."""
        from safetensors.torch import load

        return load(self.data(name))


def list_checkpoints(run_url: str) -> list[Checkpoint]:
    """Those that exist, oldest first, their tensors unread; one that is no JSON is passed over."""
    base = store.join(run_url, "checkpoints")
    found = []
    for name in filter(NAME.fullmatch, store.names(base)):
        url = store.join(base, name)
        try:
            state = json.loads(store.read(store.join(url, "state.json")))
        except FileNotFoundError:
            continue
        except objects.StoreError:  # no answer, or no right: that says nothing of what lies there
            raise
        except ValueError:  # no JSON
            passed_over(url)
            continue
        if state.get("schema") != SCHEMA:
            raise ValueError(
                f"{store.display(url)} has schema {state.get('schema')}, this version reads "
                f"{SCHEMA}: continue it with the version that wrote it"
            )
        found.append(Checkpoint(url, state))
    return found


def is_whole(checkpoint: Checkpoint, hold: bool = False) -> bool:
    """True where every file has the bytes that were written; `hold`: kept, to be read once.

    Raises StoreError where the store does not give them.
    """
    for name in checkpoint.state["files"]:
        try:
            data = checkpoint.data(name)
        except objects.StoreError:
            raise
        except (ValueError, FileNotFoundError):
            checkpoint.held.clear()
            return False
        if hold:
            checkpoint.held[name] = data
    return True


def latest(run_url: str) -> Checkpoint | None:
    """The newest whole checkpoint, its bytes held until they are read; broken ones are passed over
    with a word on stderr."""
    for checkpoint in reversed(list_checkpoints(run_url)):
        if is_whole(checkpoint, hold=True):
            return checkpoint
        passed_over(checkpoint.url)
    return None


def passed_over(url: str) -> None:
    print(f"checkpoint {store.display(url)} is torn or corrupted: passed over", file=sys.stderr)


def split_address(url: str) -> tuple[str, str | None]:
    """The run's URL and, of a checkpoint's own, its name."""
    run_url, _, name = url.rstrip("/").rpartition("/")
    if NAME.fullmatch(name) and run_url.endswith("/checkpoints"):
        return run_url.removesuffix("/checkpoints"), name
    return url, None


def find(url: str, which: str = "last") -> Checkpoint:
    """A checkpoint by the URL of its run (`which`: last, best or images_seen) or its own URL."""
    run_url, name = split_address(url)
    url, which = run_url, name or which
    every = list_checkpoints(url)
    if not every:
        raise ValueError(f"{store.display(url)} holds no checkpoint: name a run's folder")
    if which == "last":
        return every[-1]
    if which == "best":
        return max(every, key=score)
    for checkpoint in every:
        if which.isdigit() and checkpoint.images_seen == int(which):
            return checkpoint
    there = ", ".join(str(c.images_seen) for c in every)
    raise ValueError(f"{store.display(url)} has no checkpoint {which!r}; last, best or {there}")


def score(checkpoint: Checkpoint) -> tuple[float, int]:
    metric = float(checkpoint.state.get("metrics", {}).get(METRIC, "nan"))
    return (metric if metric == metric else float("-inf"), checkpoint.images_seen)


def images_saved(url: str) -> int:
    """`images_seen` of a run's newest checkpoint by its name alone; 0 where there is none."""
    base = store.join(url, "checkpoints")
    for name in reversed(store.names(base)):
        if name.isdigit() and store.exists(store.join(base, name, "state.json")):
            return int(name)
    return 0


def build_generator(model: Mapping[str, Any]) -> nn.Module:
    """A generator from its configuration: `name` and the options of its class."""
    from models import GENERATORS

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
    load_tensors(checkpoint.read(name), module, store.display(checkpoint.url))


def load_tensors(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
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
