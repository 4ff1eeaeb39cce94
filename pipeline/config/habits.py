"""Keys that other trainers have: what to write here instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

AGAIN = "running the same command again resumes"
SEEN = "GPUs are used if visible; CUDA_VISIBLE_DEVICES= before the command hides them"
# Their name: our keys, of which the first that the command has is used; our value ({v}: theirs);
# what else to know.
HABITS = {
    "lr": (
        ("objective.phases",),
        "[{{until: null, lr: {v}}}]",
        "or lr_scale=, a factor of the recipe's",
    ),
    "batch_size": (("batch",), "{v}", "over all processes"),
    "epochs": (("max_images",), "{images}", ""),
    "steps": (("max_images",), "{images}", "steps times batch"),
    "gpus": (("processes",), "{v}", "`submit` to a cluster: cluster.gpus_per_node={v}"),
    "device": (("processes",), "auto", SEEN),
    "num_workers": (("loader_threads", "workers"), "{v}", "of each process"),
    "resume": (("run",), "{v}", AGAIN),
    "output_dir": (("run", "out"), "{v}", ""),
    "run": (("checkpoint", "model"), "{v}", ""),
    "checkpoint": (("init",), "{v}", f"a new run from its weights; {AGAIN}"),
    "dataset": (("data.url",), "{v}", "a set that `shard` wrote"),
    "image_size": (("data.crop",), "{v}", "pixels"),
    "mixed_precision": (("precision",), "{v}", ""),
    "pretrained": (("init",), "{v}", "a run, a checkpoint or models:/NAME@champion"),
    "input": (("image",), "{v}", "a file or a folder"),
}
SPELLINGS = {
    "epoch": "epochs", "num_steps": "steps", "train_steps": "steps", "total_steps": "steps",
    "iters": "steps", "max_iter": "steps", "num_processes": "gpus", "nproc_per_node": "gpus",
    "learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs", "max_steps": "steps",
    "iterations": "steps", "num_gpus": "gpus", "devices": "gpus", "workers": "num_workers",
    "save_dir": "output_dir", "out": "output_dir", "data_dir": "dataset", "img_size": "image_size",
    "size": "image_size", "amp": "mixed_precision", "bs": "batch_size",
}  # fmt: skip


def instead(name: str, value: Any, given: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """Return `: write KEY=VALUE (why)` for a key that other trainers have, or an empty text."""
    name = SPELLINGS.get(name, name)
    keys, text, why = HABITS.get(name, ((), "", ""))
    key = next((key for key in keys if key in allowed), None)
    if key is None:
        return f": {SEEN}" if name == "device" and "model" in allowed else ""
    images = "IMAGES"
    if name == "steps" and isinstance(value, int):
        images = str(value * given.get("batch", 16))
    if name == "epochs":
        images, why = _epochs(value, given)
    if isinstance(value, bool) or value in ("no", "auto", "all", "latest"):
        off = key == "precision" and value in (False, "no")
        value = "fp32" if off else "RUN" if key == "run" else "auto"
    ours = shlex.quote(f"{key}={text.format(v=value, images=images)}")
    return f": write {ours}{f' ({why.format(v=value)})' if why else ''}"


def instead_on_cluster(name: str, value: Any, gpus_per_node: int) -> str:
    """Return `: write cluster.KEY=VALUE` for a key that means GPUs of a job, or an empty text."""
    if SPELLINGS.get(name, name) not in ("gpus", "device"):
        return ""
    number = value if str(value).isdigit() else 0 if value == "cpu" else gpus_per_node
    return f": write cluster.gpus_per_node={number} (of each of cluster.nodes=)"


def _epochs(epochs: Any, given: Mapping[str, Any]) -> tuple[str, str]:
    """Return how many images the epochs have in `data.url=`, if it can be read, and of what."""
    from shards.manifest import open_manifest  # pyarrow, which no other command line loads

    try:
        split = open_manifest(str(given["data.url"])).splits[given.get("data.train", "train")]
        return str(int(epochs * split.samples)), f"{epochs} x {split.samples} images of the split"
    except (KeyError, OSError, TypeError, ValueError):
        return "IMAGES", "epochs times the images of the split; with data.url= they are counted"
