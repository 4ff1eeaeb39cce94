"""The command that usually comes next, printed at the end of a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def following(command: str, config: Any, result: Mapping[str, Any]) -> str:
    """Return the line `next: …` for a finished command; empty where nothing follows."""
    words: list[str] = []
    if (
        command == "shard"
        and config.action == "write"
        and config.out
        and "shards_left" not in result
    ):
        words = ["train", "experiment=RECIPE", f"data.url={config.out}"]
    elif command == "masks":
        words = ["evaluate", "checkpoint=RUN", "data.url=SET", f"masks.url={config.out}"]
    elif command == "train" and not config.smoke:
        best = f"{result.get('run')}/checkpoints/best"
        words = ["evaluate", f"checkpoint={best}", f"data.url={config.data.url}"]
        if config.data.resize_short:
            words.append(f"data.resize_short={config.data.resize_short}")
        words.append("protocol=musical" if config.masks.kind == "center" else "masks.url=MASKS")
    elif command == "evaluate" and "run" in result:
        words = ["register", f"run={result['run']}", f"checkpoint={result['images_seen']}"]
    elif command == "register" and "next" not in result:  # else it printed what comes first
        words = ["promote", f"{result['name']}/{result['version']}"]
    elif command == "promote" and "model_uri" in result:
        words = ["predict", f"model={result['model_uri']}", "image=IMAGE", "mask=MASK", "out=OUT"]
    return f"next: python -m pipeline {shlex.join(words)}" if words else ""
