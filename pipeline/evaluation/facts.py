"""What an evaluation is of: its pairs, and the facts that its numbers depend on."""

import hashlib
import json
import re
import sys
from typing import Any

from omegaconf import OmegaConf

from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation.pairs import Pairs, make_pairs
from pipeline.runs.identity import FIXED, MUTABLE, saved_config
from pipeline.tracking.keys import flatten
from shards import store
from shards.manifest import open_manifest

# No part of what a run learns, or said elsewhere (the dataset by its digest).
ASIDE = (*MUTABLE, *FIXED, "seed", "experiment", "validate.", "data.url", "init")


def pair_up(config: EvaluateConfig) -> tuple[Pairs, dict[str, Any]]:
    """The protocol's pairs, and the facts about them that results carry."""
    protocol = config.protocol
    if config.data.url is None:
        raise ValueError("data.url= is missing: the sharded set that holds the pictures")
    images = open_manifest(config.data.url)
    masks = open_manifest(config.masks.url) if config.masks.url else None
    pairs = make_pairs(
        images,
        config.split,
        masks,
        protocol.buckets,
        protocol.size,
        config.data.resize_short,
        config.limit,
    )
    if pairs.reused:
        print(
            "evaluate: fewer masks in a bucket than pictures: its masks go round again",
            file=sys.stderr,
        )
    facts = {
        "protocol": protocol.name,
        "ssim": protocol.ssim,
        "size": protocol.size,
        "pairs": len(pairs),
        "images": len(pairs) // len(protocol.buckets),
        "pairs_digest": pairs.digest,
        "masks_reused": pairs.reused,
        "dataset": images.digest,
        "dataset_name": images.name,
        "split": config.split,
        "limit": config.limit,
        "resize_short": config.data.resize_short,
        "data_url": store.display(images.url),
        "masks_url": store.display(masks.url) if masks else None,
        "masks": masks.digest if masks else None,
        "masks_name": masks.name if masks else None,
        "masks_count": sum(s.samples for s in masks.splits.values()) if masks else 0,
    }
    return pairs, facts


def recipe(facts: dict[str, Any]) -> dict[str, Any]:
    """Experiment and seed of the run, and a hash of all else that decides what it learns.

    Runs with one hash differ in nothing but their seed. Empty for what is no run.
    """
    saved = saved_config(facts["run"]) if "run" in facts else None
    if saved is None:
        return {}
    everything = flatten(OmegaConf.to_container(saved))  # type: ignore[arg-type]
    rest = {name: value for name, value in everything.items() if not name.startswith(ASIDE)}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"experiment": saved.get("experiment"), "seed": saved.get("seed"), "recipe": digest}


def place_of(facts: dict[str, Any]) -> str:
    """Where the table goes: into the run's folder, or that of evaluations of other things."""
    pairs = facts["pairs_digest"][:8]
    if "run" in facts:
        stem = f"{facts['protocol']}-{facts['weights']}-{facts['images_seen']:012d}-{pairs}"
        return store.join(facts["run"], "evaluation", f"{stem}.parquet")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", facts["name"]).strip("_")
    return f"runs/evaluation/{facts['protocol']}-{name}-{pairs}.parquet"
