"""The reference pairs that a registered model's promotions are decided on, and scores on them.

The first promotion pins the pairs of its evaluation: a tag of the registered model holds their URLs
and digest. Only `repin=true` changes them.
"""

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pipeline.config.groups import (
    GATE,
    EvaluationData,
    EvaluationMasks,
    ProtocolConfig,
    RecordConfig,
)
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import metrics, results
from pipeline.inference.sources import own_tags
from pipeline.registry.gate import Scored
from pipeline.runs.folder import saved_config
from pipeline.tracking import model_versions
from shards import store

TAG = "gate.pinned"
FACTS = ("protocol", "ssim", "gate", "size", "split", "pairs", "pairs_digest", "dataset", "masks")
SOURCES = ("data_url", "masks_url", "limit", "resize_short")


def read(client: Any, name: str) -> dict[str, Any] | None:
    """Return the pairs pinned for a registered model; None before its first promotion."""
    text = client.get_registered_model(name).tags.get(TAG)
    return {"gate": GATE, **json.loads(text)} if text else None  # older versions pinned no gate


def write(client: Any, name: str, pairs: dict[str, Any]) -> None:
    client.set_registered_model_tag(name, TAG, json.dumps(pairs, sort_keys=True))


def from_evaluation(tags: dict[str, str], url: str | None) -> dict[str, Any]:
    """Take the pairs of the Parquet at `url`, else of the version's own largest evaluation."""
    if url:
        table, facts = results.load(url)
    else:
        evaluations = _evaluations(tags, None)
        if not evaluations:
            raise ValueError(
                f"no evaluation of {tags['name']} from {tags['run']}: run "
                f"{evaluation_line(tags)}, or set pairs= to a Parquet file"
            )
        table, facts = max(evaluations, key=lambda each: each[0].num_rows)
    pairs: dict[str, Any] = {key: facts.get(key) for key in (*FACTS, *SOURCES)}
    for key in ("data_url", "masks_url"):
        if pairs[key] and store.is_local(pairs[key]):
            pairs[key] = os.path.abspath(store.local(pairs[key]))
    pairs["gate"] = pairs["gate"] or GATE  # files of older versions have none
    return {**pairs, "buckets": list(dict.fromkeys(table["bucket"].to_pylist()))}


def missing_evaluation(client: Any, name: str, tags: dict[str, str]) -> str:
    """Return the command that must run before a version is promoted; empty if none must."""
    return "" if read(client, name) or _evaluations(tags, None) else evaluation_line(tags)


def evaluation_line(tags: dict[str, str]) -> str:
    """Return the command that scores a version: as its run was evaluated before, else trained."""
    run = tags["run"]
    name = tags["images_seen"].zfill(12)
    words = [f"checkpoint={store.join(run, 'checkpoints', name)}"]
    words += ["weights=raw"] if tags["weights"] == "raw" else []
    saved: Any = saved_config(run) or OmegaConf.create()
    found: dict[str, Any]
    draw = ""
    if methods := OmegaConf.select(saved, "methods.path"):
        words.append(f"methods.path={methods}")
    if evaluations := results.of_run(run):
        _, facts = max(evaluations, key=lambda each: each[0].num_rows)
        found = {key.replace("_", ".", 1): facts.get(key) for key in ("data_url", "masks_url")}
        found |= {key: facts.get(key) for key in ("protocol", "split", "limit")}
        found |= {"data.resize_short": facts.get("resize_short"), "protocol.size": facts["size"]}
    else:
        found = {
            key: OmegaConf.select(saved, key)
            for key in ("data.url", "data.resize_short", "masks.url")
        }
        side = found["protocol.size"] = OmegaConf.select(saved, "validate.size")
        if OmegaConf.select(saved, "masks.kind") == "center":
            found["protocol"] = "musical"
        elif not found["masks.url"]:
            out = found["masks.url"] = store.join(run, "masks")
            size = f"size={side} " if side else ""
            draw = f"python -m pipeline masks {size}{shlex.quote(f'out={out}')} && "
    words += [f"{key}={value}" for key, value in found.items() if value is not None]
    return f"{draw}python -m pipeline evaluate {shlex.join(words)}"


def scores(uri: str, candidate: Any, pairs: dict[str, Any], fresh: bool) -> Scored:
    """Return a registered version's evaluation on the pinned pairs, by the metrics of their gate.

    Taken from its run's evaluations if one is of these weights, pairs and metrics; otherwise, and
    with `fresh`, its archive is evaluated here.
    """
    for scored in [] if fresh else _evaluations(own_tags(candidate), pairs["pairs_digest"]):
        if _has_metrics(scored[1], pairs):
            return scored
    return _evaluate(f"models:/{candidate.name}/{candidate.version}", uri, pairs)


def champion_scores(uri: str, champion: Any, pairs: dict[str, Any], fresh: bool) -> Scored:
    """Return the champion's scores, stored with its files; evaluate it here on other pairs."""
    if not fresh:
        with tempfile.TemporaryDirectory() as scratch:
            model_versions.download(uri, own_tags(champion)["model_id"], "gate", Path(scratch))
            table, facts = results.load(str(Path(scratch, "gate", "evaluation.parquet")))
        if facts["pairs_digest"] == pairs["pairs_digest"] and _has_metrics(facts, pairs):
            return table, facts
    return _evaluate(f"models:/{champion.name}/{champion.version}", uri, pairs)


def _has_metrics(facts: Mapping[str, Any], pairs: Mapping[str, Any]) -> bool:
    """Return whether the evaluation computed what the gate asks."""
    computed = {*facts.get("metrics", ())} - {
        name for name, note in facts.get("notes", {}).items() if note.startswith("empty: ")
    }
    return computed.issuperset(m.name for m in metrics.selected(pairs["gate"]))


def _evaluations(tags: dict[str, str], pairs_digest: str | None) -> list[Scored]:
    """Return the evaluations in the version's run that were made with exactly its weights."""
    evaluations = results.of_weights(tags["run"], tags["weights_sha256"], tags["sha256"])
    return [each for each in evaluations if pairs_digest in (None, each[1]["pairs_digest"])]


def _evaluate(model: str, uri: str, pairs: dict[str, Any]) -> Scored:
    from pipeline.evaluation.evaluate import chosen_metrics, evaluate

    _, metric_facts = chosen_metrics(pairs["gate"], pairs["size"], torch.device("cpu"))
    for name, note in metric_facts.get("notes", {}).items():
        raise ValueError(f"the protocol's gate asks for {name}, which {model} lacks: {note}")
    if not pairs.get("data_url"):
        raise ValueError(
            f"no scores of {model} on the reference pairs {pairs['pairs_digest'][:12]}, whose data "
            "set is not recorded: evaluate its checkpoint on them, or choose new ones: repin=true"
        )
    os.environ.setdefault("MLFLOW_TRACKING_URI", uri)
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch, "scores.parquet"))
        config = EvaluateConfig(
            model=model,
            data=EvaluationData(url=pairs["data_url"], resize_short=pairs["resize_short"]),
            masks=EvaluationMasks(url=pairs["masks_url"]),
            protocol=ProtocolConfig(
                name=pairs["protocol"],
                buckets=pairs["buckets"],
                ssim=pairs["ssim"],
                size=pairs["size"],
                gate=pairs["gate"],
            ),
            split=pairs["split"],
            limit=pairs["limit"],
            out=out,
            tracking=RecordConfig(enabled=False),
        )
        result = evaluate(config)
        if result["pairs_digest"] != pairs["pairs_digest"]:
            raise ValueError(
                f"the reference pairs at {store.display(pairs['data_url'])} changed from "
                f"{pairs['pairs_digest'][:12]} to {result['pairs_digest'][:12]}: restore the data, "
                "or choose new pairs with repin=true"
            )
        return results.load(out)
