"""Keys that other trainers have: what to write here instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

RUN = "running the same command again resumes"
# Their name: our key, our value ({v}: theirs), what else to know.
HABITS = {
    "lr": (
        "objective.phases",
        "[{{until: null, lr: {v}}}]",
        "or lr_scale=, a factor of the recipe's",
    ),
    "batch_size": ("batch", "{v}", "over all processes"),
    "epochs": ("max_images", "{images}", "epochs times the images of the split, `shard info URL`"),
    "steps": ("max_images", "{images}", "steps times batch"),
    "gpus": ("processes", "{v}", "on this machine; `submit` takes cluster.gpus_per_node="),
    "num_workers": ("loader_threads", "{v}", "of each process"),
    "device": ("processes", "{v}", "GPUs are used if visible; CUDA_VISIBLE_DEVICES= hides them"),
    "resume": ("run", "{v}", RUN),
    "output_dir": ("run", "{v}", RUN),
    "dataset": ("data.url", "{v}", "a set that `shard` wrote"),
    "image_size": ("data.crop", "{v}", "pixels"),
    "mixed_precision": ("precision", "{v}", ""),
    "pretrained": ("init", "{v}", "a run, a checkpoint or models:/NAME@champion"),
}
SPELLINGS = {
    "learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs", "max_steps": "steps",
    "iterations": "steps", "num_gpus": "gpus", "devices": "gpus", "workers": "num_workers",
    "save_dir": "output_dir", "out": "output_dir", "data_dir": "dataset", "img_size": "image_size",
    "size": "image_size", "amp": "mixed_precision", "bs": "batch_size",
}  # fmt: skip


def instead(name: str, value: Any, given: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """Return `: write KEY=VALUE (why)` for a key that other trainers have, or an empty text."""
    name = SPELLINGS.get(name, name)
    key, text, why = HABITS.get(name, ("", "", ""))
    if key not in allowed:
        return ""
    images = "IMAGES"
    if name == "steps" and isinstance(value, int):
        images = str(value * given.get("batch", 16))
    if name == "device":
        value = "auto"
    ours = shlex.quote(f"{key}={text.format(v=value, images=images)}")
    return f": write {ours}{f' ({why})' if why else ''}"
