"""The pairs that promotions into a model are decided on, and a version's scores on them.

The first promotion pins the pairs of the evaluation it rests on (their URLs and digest are a tag of
the registered model); only `repin=true` changes them.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.groups import EvaluationData, EvaluationMasks, ProtocolConfig, RecordConfig
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import results
from pipeline.tracking import model_versions
from shards import store

TAG = "gate.pinned"
FACTS = ("protocol", "ssim", "size", "split", "pairs", "pairs_digest", "dataset", "masks")
PLACES = ("data_url", "masks_url", "limit", "resize_short")


def read(client: Any, name: str) -> dict[str, Any] | None:
    """What is pinned for a registered model; None before its first promotion."""
    text = client.get_registered_model(name).tags.get(TAG)
    return json.loads(text) if text else None


def write(client: Any, name: str, pairs: dict[str, Any]) -> None:
    client.set_registered_model_tag(name, TAG, json.dumps(pairs, sort_keys=True))


def from_evaluation(tags: dict[str, str], url: str | None) -> dict[str, Any]:
    """The pairs of the Parquet at `url`, else of the version's own largest evaluation."""
    if url:
        table, facts = results.load(url)
    else:
        found = _evaluations(tags, None)
        if not found:
            raise ValueError(
                f"no evaluation of {tags['name']} from {tags.get('run', 'its run')} was found: "
                f"python -m pipeline evaluate checkpoint={tags.get('run', 'RUN')} data.url=… "
                "masks.url=…, or name a Parquet with pairs="
            )
        table, facts = max(found, key=lambda each: each[0].num_rows)
    kept = {key: facts.get(key) for key in (*FACTS, *PLACES)}
    for key in ("data_url", "masks_url"):
        place = kept[key]
        if place and store.is_local(place):
            kept[key] = os.path.abspath(store.local(place))
    return {**kept, "buckets": list(dict.fromkeys(table["bucket"].to_pylist()))}


def scores(uri: str, candidate: Any, pairs: dict[str, Any], fresh: bool) -> pa.Table:
    """A registered version's per-image scores on the pinned pairs.

    Those that `evaluate` left in its run, if they are of these weights and pairs; else, and with
    `fresh`, its archive is evaluated here.
    """
    tags = {k.removeprefix("lacuna."): v for k, v in candidate.tags.items()}
    if not fresh:
        found = _evaluations(tags, pairs["pairs_digest"])
        if found:
            return found[0][0]
    return _evaluate(f"models:/{candidate.name}/{candidate.version}", uri, tags, pairs)


def champion_scores(uri: str, champion: Any, pairs: dict[str, Any], fresh: bool) -> pa.Table:
    """The champion's scores, which lie beside its files; evaluated here on other pairs."""
    tags = {k.removeprefix("lacuna."): v for k, v in champion.tags.items()}
    if not fresh:
        with tempfile.TemporaryDirectory() as scratch:
            model_versions.download(uri, tags["model_id"], "gate", Path(scratch))
            table, facts = results.load(str(Path(scratch, "gate", "evaluation.parquet")))
        if facts["pairs_digest"] == pairs["pairs_digest"]:
            return table
    return _evaluate(f"models:/{champion.name}/{champion.version}", uri, tags, pairs)


def _evaluations(
    tags: dict[str, str], pairs_digest: str | None
) -> list[tuple[pa.Table, dict[str, Any]]]:
    """The tables in the version's run that were made with exactly its weights."""
    found = results.of_weights(tags["run"], tags["weights_sha256"], tags["sha256"])
    return [each for each in found if pairs_digest in (None, each[1]["pairs_digest"])]


def _evaluate(model: str, uri: str, tags: dict[str, str], pairs: dict[str, Any]) -> pa.Table:
    from pipeline.evaluation.evaluate import evaluate

    if not pairs.get("data_url"):
        raise ValueError(
            f"no scores of {model} on the pinned pairs {pairs['pairs_digest'][:12]}, and where "
            "they lie is not known: evaluate its checkpoint on them, or pin others with repin=true"
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
            ),
            split=pairs["split"],
            limit=pairs["limit"],
            out=out,
            tracking=RecordConfig(enabled=False),
        )
        result = evaluate(config)
        if result["pairs_digest"] != pairs["pairs_digest"]:
            raise ValueError(
                f"the pairs at {store.display(pairs['data_url'])} are not those that were pinned "
                f"({result['pairs_digest'][:12]}, pinned {pairs['pairs_digest'][:12]}): "
                "bring those back, or pin these with repin=true"
            )
        return results.load(out)[0]
