"""`evaluate`: score a model on held-out images with fixed masks; write per-image scores and means.

Batches are fixed groups of consecutive pairs, parts fixed groups of batches. A rank takes every
`world_size`-th part and publishes it as a file once it is scored; rank 0 joins the files. Every
pair is scored once, always in the same batch, so that any world size gives the same table. Running
the command again continues an interrupted evaluation from the existing parts.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

import pipeline
from pipeline.common import console
from pipeline.common.environment import count
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import (
    learned,
    metrics,
    origin,
    pair_images,
    partial_results,
    receipts,
    results,
    sets,
)
from pipeline.evaluation.pairs import Pairs, pairs_of
from pipeline.evaluation.scoring import Predict, predictor, score
from pipeline.evaluation.verify import reproducible, verify
from pipeline.inference import sources
from shards import store

BATCHES_PER_PART = 16
RESULT_VARIABLE = "LACUNA_RESULT"  # names the file in which rank 0 returns its result


def main(config: EvaluateConfig) -> dict[str, Any] | None:
    """Evaluate in this process, or start `processes=` workers that do.

    Returns `{"protocol", "weights", "pairs", "buckets", "mean6", "name", "dataset",
    "pairs_digest", "parquet", …}`; with `export=` alone `{"exported", "out", "pairs_digest"}`; None
    where rank 0 runs on another machine. With `verify=`: `{"verified", "differences"}`.
    """
    if config.verify is not None:
        return verify(config.verify, main)
    _check_metrics(config)
    if "RANK" in os.environ:
        return _work(config, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    from pipeline.launch.topology import place, visible_gpus
    from pipeline.launch.workers import run_workers

    here = place(os.environ, count("processes", config.processes) or max(1, visible_gpus()))
    if here.nodes * here.processes == 1:
        return evaluate(config)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RESULT_VARIABLE] = result = os.path.join(scratch, "result.json")
        if status := run_workers("evaluate", config, here).status:
            raise SystemExit(status)
        return json.loads(store.read(result)) if store.exists(result) else None


def _work(config: EvaluateConfig, rank: int, world_size: int) -> dict[str, Any]:
    """Do a worker's share; rank 0 returns the result to its launcher."""
    from pipeline.common.environment import core_count

    threads = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, threads))
    result = evaluate(config, rank, world_size)
    if rank == 0 and RESULT_VARIABLE in os.environ:
        store.write(os.environ[RESULT_VARIABLE], json.dumps(result).encode())
    return result


def evaluate(config: EvaluateConfig, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Score this rank's share of the pairs; on rank 0 also join and return the whole result."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        make_cuda_deterministic()
    pairs, facts = pairs_of(config)
    if config.export is not None:
        if rank == 0:
            pair_images.export(pairs, config.export, config.layout)
        if not (config.checkpoint or config.model or config.predictions):
            return {"exported": len(pairs), "out": config.export, "pairs_digest": pairs.digest}
    predict, model_facts = _load_model(config, pairs, device)
    names = [*config.metrics, *config.protocol.gate]
    chosen, metric_facts = chosen_metrics(names, pairs.size, device)
    facts = {
        **facts,
        "code": pipeline.__version__,
        **metric_facts,
        **model_facts,
        "name": config.name or model_facts["name"],
    }
    of_sets = [m for m in chosen if m.of_sets]
    largest = any(len(pairs) >= m.least for m in of_sets)  # whether any needs features
    url = config.out or results.default_url(facts)

    # Parts depend on everything but the name that is printed.
    parts = partial_results.folder(
        url, {**facts, "name": model_facts["name"], "batch": config.batch}
    )
    starts = range(0, len(pairs), config.batch)
    groups = [starts[i : i + BATCHES_PER_PART] for i in range(0, len(starts), BATCHES_PER_PART)]
    show_progress = console.progress(facts["name"], len(pairs), rank == 0)
    for number in range(rank, len(groups), world_size):
        part = partial_results.part_url(parts, number)
        if not store.exists(part):
            recorder = sets.Recorder(of_sets[0].loaded(device)) if largest else None
            table = score(
                *(predict, pairs, groups[number], config.batch, device),
                chosen=[m.name for m in chosen],
                record=recorder,
            )
            if recorder is not None:
                recorder.save(features_url(part))
            results.save(part, table, {})
        show_progress(min(len(pairs), (number + 1) * BATCHES_PER_PART * config.batch))
    if rank:
        return {"rank": rank, "pairs": len(pairs)}

    table = results.merge(partial_results.collect(parts, len(groups)), len(pairs))
    if of_sets:
        buckets = table["bucket"].to_pylist()
        with tempfile.TemporaryDirectory() as scratch:
            urls = [features_url(partial_results.part_url(parts, n)) for n in range(len(groups))]
            joined = sets.join(urls, buckets, f"{scratch}/features.npy") if largest else None
            facts["sets"], notes = sets.estimate(joined, buckets, of_sets)
        facts["notes"] = {**facts["notes"], **notes}
    if warning := results.warning(table, facts):
        console.say(warning)
    results.save(url, table, {**facts, "config": reproducible(config, facts)})
    samples = pair_images.fill_samples(predict, pairs, config.images)
    samples_url = pair_images.save(url, samples)
    store.remove(parts, recursive=True)
    summary = results.summarize(table, facts)
    printed = metrics.printed_metrics(facts["ssim"], facts.get("metrics", ()))
    result = {**facts, **summary, "parquet": url, "samples": samples_url, "warning": warning}
    result["pictures"] = samples_url  # its former name, kept for one release
    result["receipts"] = {key: receipts.receipt(facts, key) for key in printed}
    if config.features is not None:
        result["features"] = _draw_features(config, pairs)
    if "run" in facts:
        _record_in_run(config, result)
    return result


def _check_metrics(config: EvaluateConfig) -> None:
    metrics.selected(config.metrics)
    metrics.selected(config.protocol.gate, "protocol.gate")


def chosen_metrics(
    names: Sequence[str], size: int, device: torch.device
) -> tuple[list[metrics.Metric], dict[str, Any]]:
    """Return the metrics `names` whose weights are here, and the facts about all of them.

    size: side of the images.
    """
    asked, usable, notes = metrics.selected(names), [], {}
    hashes: dict[str, str] = {}
    for metric in asked:
        try:
            if size < metric.window:
                raise ValueError(f"needs images of at least {metric.window} pixels")
            metric.loaded(device)
            hashes |= learned.hashes(metric.needs)
            usable.append(metric)
        except ValueError as error:
            notes[metric.name] = f"empty: {error}"
    facts = {"metrics": [m.name for m in asked], "metric_weights": hashes, "notes": notes}
    return usable, facts if asked else {}


def features_url(part: str) -> str:
    return part.replace(".parquet", ".npy")


def make_cuda_deterministic() -> None:
    """Make convolutions on CUDA use full float32 and one fixed algorithm.

    The same weights then get the same scores again, on any process, and those of a CPU up to
    rounding.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def dry_run(config: EvaluateConfig) -> str:
    """Say what would be scored and written, after checking the inputs."""
    if config.verify is not None:
        return f"would repeat the evaluation {config.verify} and compare"
    _check_metrics(config)
    pairs, facts = pairs_of(config)
    source = config.predictions or config.model or config.checkpoint
    lines = [f"would write {len(pairs)} pairs into {config.export}"] if config.export else []
    if source is not None or not lines:
        facts |= _load_model(config, pairs, torch.device("cpu"))[1]
        url = config.out or results.default_url(facts)
        lines.append(f"would score {source} on {len(pairs)} pairs and write {url}")
    return "\n".join(lines)


def _record_in_run(config: EvaluateConfig, result: dict[str, Any]) -> None:
    """Protect the scored checkpoint from deletion, and log the scores to its MLflow run."""
    from pipeline.runs.checkpoints import pin
    from pipeline.tracking.lifecycle import record

    pin(result["run"], result["images_seen"])
    if not config.tracking.enabled:
        return
    prefix, rows = f"eval/{result['protocol']}", dict(result["buckets"])
    values = {f"{prefix}/psnr {name}": row["psnr"] for name, row in rows.items()}
    overall = result["all"] | (result["mean6"] or {})
    printed = metrics.printed_metrics(chosen=result.get("metrics", ()))
    values |= {f"{prefix}/{k}": overall[k] for k in printed if k in overall}
    files = [result["parquet"], result["samples"], *result.get("features", [])]
    record(result["run"], values, result["images_seen"], files)


def _draw_features(config: EvaluateConfig, pairs: Pairs) -> list[str]:
    """Draw what the generator computes on three of the pairs; return the URLs of the images."""
    from pipeline.evaluation import figures
    from pipeline.runs.checkpoints import load_generator

    generator, _ = load_generator(str(config.checkpoint), weights=config.weights)
    batches = [pairs.load(i, i + 1) for i in pair_images.sample_positions(pairs, 6)[1::2]]
    images = torch.cat([batch.images for batch in batches]).permute(0, 3, 1, 2).float() / 255
    masks = torch.cat([batch.masks for batch in batches]).unsqueeze(1).float()
    return figures.draw(generator, images, masks, str(config.features))


def show(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    if "verified" in result:
        return "\n".join([f"{result['verified']}:", *(result["differences"] or ["equal"])])
    if "buckets" not in result:
        return f"{result['exported']} pairs in {result['out']}"
    title = f"{result['name']} · {result['protocol']} · {result['dataset_name']} · {result['ssim']}"
    return f"{title}\n{results.as_text(result)}\n{result['parquet']}"


def _load_model(
    config: EvaluateConfig, pairs: Pairs, device: torch.device
) -> tuple[Predict, dict[str, Any]]:
    """Load what is scored; return its predictions and the facts that identify it."""
    if config.predictions is not None:
        return pair_images.read_predictions(config.predictions, pairs)
    source = sources.load(config.model, config.checkpoint, config.weights, device)
    facts = {**source.facts, "name": source.name}
    facts |= origin.training_recipe(facts)
    if config.checkpoint is not None:
        facts |= origin.selection(config.checkpoint, facts["run"])
    return predictor(source.fill, device), facts
