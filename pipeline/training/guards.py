"""Ranks that were given different things are refused before the first step.

Nodes have disks, caches and configuration folders of their own. Ranks that differ would be trained
towards different losses, on different pictures, or would wait for each other for ever.
"""

from __future__ import annotations

import socket
from typing import Any

from pipeline.config.compose import ConfigError
from pipeline.config.groups import leaves
from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from shards.manifest import Manifest

OWN = (
    "run",
    "root",
    "weights",
    "processes",
    "cluster.",
    "tracking.",
)  # may differ from node to node
MENDS = {
    "data.url": "copy the same set to every node, or give a URL that all see",
    "precision": "their devices differ: give precision=fp16 or fp32 instead of auto",
}


def check_alike(config: TrainConfig, manifest: Manifest, engine: Engine) -> None:
    """ConfigError, the same on every rank, naming the first that differs from rank 0, and in what.

    Of the set its digest counts, not its place. ImageNet weights do not differ: rank 0 reads them
    for all.
    """
    mine: dict[str, Any] = {k: str(v) for k, v in leaves(config) if not k.startswith(OWN)}
    mine |= {"data.url": manifest.digest[:12], "precision": engine.precision}
    told = engine.gather((socket.gethostname(), mine))
    first_host, first = told[0]
    for rank, (host, other) in enumerate(told):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                mend = MENDS.get(name, "start every node with the same words and folders")
                raise ConfigError(
                    f"rank {rank} on {host} has {name}={other.get(name)}, rank 0 on {first_host} "
                    f"{name}={first.get(name)}: {mend}"
                )
