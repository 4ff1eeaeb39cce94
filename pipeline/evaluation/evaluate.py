"""`evaluate`: held-out pictures and fixed masks in, a table of per-image scores and means out.

Batches are fixed groups of consecutive pairs, parts fixed groups of batches. A rank takes every
`world_size`-th part, publishes it as a file when it is scored, and rank 0 joins them: each pair is
scored once, in the same company, so that any world size gives the same table. The same command
continues an interrupted evaluation from the parts that are there.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from omegaconf import OmegaConf

from pipeline.common import console
from pipeline.common.inputs import protect
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import pair_images, results
from pipeline.evaluation.pairs import Pairs, pair_up
from pipeline.evaluation.results import place_of
from pipeline.evaluation.scoring import CONVENTIONS, Answer, _score, asking
from pipeline.inference import sources
from pipeline.runs.folder import saved_config
from pipeline.runs.identity import FIXED_AT_START, MAY_CHANGE
from pipeline.tracking.delivery import flatten
from shards import store

# No part of what a run learns, or said elsewhere (the dataset by its digest).
ASIDE = (*MAY_CHANGE, *FIXED_AT_START, "seed", "experiment", "validate.", "data.url", "init")
PATIENCE = 600.0  # seconds without a new part before the others are given up


PART = 16  # batches
RESULT = "LACUNA_RESULT"  # where rank 0 leaves what its launcher returns


# --- the verb -------------------------------------------------------------------------------------


def main(config: EvaluateConfig) -> dict[str, Any] | None:
    """Score what `config` names, in this process or, through workers, in several.

    Returns `{"protocol", "weights", "pairs", "buckets", "mean6", "name", "dataset",
    "pairs_digest", "parquet", …}`; with `export=` alone `{"exported", "out", "pairs_digest"}`; None
    where rank 0 is another machine's.
    """
    _protect(config)
    if "RANK" in os.environ:
        return _work(config, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    from pipeline.launch.topology import place, visible_gpus
    from pipeline.launch.workers import supervise

    count = visible_gpus() if config.processes == "auto" else config.processes
    if not str(count).isdigit():
        raise ValueError(f"processes={count} is no count; give 1, 2, … or auto")
    here = place(os.environ, max(1, int(count)))
    if here.nodes * here.processes == 1:
        return evaluate(config)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RESULT] = result = os.path.join(scratch, "result.json")
        command = [sys.executable, "-m", "pipeline", *sys.argv[1:]]
        status = supervise(command, here.workers, grace=here.grace).status
        if status:
            raise SystemExit(status)
        return json.loads(store.read(result)) if store.exists(result) else None


def _work(config: EvaluateConfig, rank: int, world_size: int) -> dict[str, Any]:
    """A worker's part; rank 0 hands the result to its launcher."""
    from pipeline.common.environment import core_count

    threads = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, threads))
    result = evaluate(config, rank, world_size)
    if rank == 0 and RESULT in os.environ:
        store.write(os.environ[RESULT], json.dumps(result).encode())
    return result


def evaluate(config: EvaluateConfig, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """This rank's share of the work; on rank 0 also the whole result."""
    if config.features is not None and config.checkpoint is None:
        raise ValueError("features= looks into a generator: give checkpoint=, not an archive")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        exactly()
    pairs, facts = pair_up(config)
    if config.export is not None:
        if rank == 0:
            pair_images.export(pairs, config.export, console.progress("export", len(pairs)))
        if not (config.checkpoint or config.model or config.predictions):
            return {"exported": len(pairs), "out": config.export, "pairs_digest": pairs.digest}
    answer, told = _answer(config, pairs, device)
    facts = {**facts, **told, "name": config.name or told["name"]}
    url = config.out or place_of(facts)
    same = {
        **facts,
        "name": told["name"],
        "batch": config.batch,
    }  # not what it is called by `name=`
    shares = folder(url, same)
    starts = range(0, len(pairs), config.batch)
    groups = [starts[i : i + PART] for i in range(0, len(starts), PART)]
    tell = console.progress(facts["name"], len(pairs), rank == 0)
    for number in range(rank, len(groups), world_size):
        if not store.exists(path(shares, number)):
            table = _score(answer, pairs, groups[number], config.batch, device, CONVENTIONS)
            results.save(path(shares, number), table, {})
        tell(min(len(pairs), (number + 1) * PART * config.batch))
    if rank:
        return {"rank": rank, "pairs": len(pairs)}
    table = results.merge(collect(shares, len(groups)), len(pairs))
    results.save(url, table, facts)
    kept = pair_images.save(
        url, pair_images.draw(answer, pairs, pair_images.chosen(pairs, config.pictures))
    )
    store.remove(shares, recursive=True)
    result = {**facts, **results.summarise(table, facts["ssim"]), "parquet": url, "pictures": kept}
    if config.features is not None:
        result["features"] = _draw_features(config, pairs)
    if "run" in facts:
        _remember(config, result)
    return result


def _protect(config: EvaluateConfig) -> None:
    inputs = {name: [getattr(config, name)] for name in ("checkpoint", "model", "predictions")}
    sets = {"data.url": [config.data.url], "masks.url": [config.masks.url]}
    outputs = {name: [getattr(config, name)] for name in ("export", "features", "out")}
    protect(inputs | sets, outputs)


def exactly() -> None:
    """Convolutions on CUDA in float32 proper and by one algorithm, so that the same weights score
    the same again, on whichever process, and as on a CPU but for rounding."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def dry_run(config: EvaluateConfig) -> str:
    _protect(config)
    pairs, facts = pair_up(config)
    what = config.predictions or config.model or config.checkpoint
    lines = [f"would write {len(pairs)} pairs into {config.export}"] if config.export else []
    if what is not None or not lines:
        facts |= _answer(config, pairs, torch.device("cpu"))[1]
        where = config.out or place_of(facts)
        lines.append(f"would score {what} on {len(pairs)} pairs and write {where}")
    return "\n".join(lines)


def _remember(config: EvaluateConfig, result: dict[str, Any]) -> None:
    """Keep the checkpoint that was scored, and log the scores in its run."""
    from pipeline.runs.checkpoints import pin
    from pipeline.tracking.lifecycle import record

    pin(result["run"], result["images_seen"])
    if not config.tracking.enabled:
        return
    prefix, rows = f"eval/{result['protocol']}", dict(result["buckets"])
    values = {f"{prefix}/psnr {name}": row["psnr"] for name, row in rows.items()}
    overall = result["mean6"] or next(iter(rows.values()))
    values |= {f"{prefix}/{name}": overall[name] for name in ("psnr", "ssim", "l1")}
    files = [result["parquet"], result["pictures"], *result.get("features", [])]
    record(result["run"], values, result["images_seen"], files)


def _draw_features(config: EvaluateConfig, pairs: Pairs) -> list[str]:
    """Pictures of what the generator sees in three of the pairs."""
    from pipeline.evaluation import figures
    from pipeline.runs.checkpoints import load_generator

    generator, _ = load_generator(str(config.checkpoint), weights=config.weights)
    loaded = [pairs.load(i, i + 1) for i in pair_images.chosen(pairs, 6)[1::2]]
    images = torch.cat([one.images for one in loaded]).permute(0, 3, 1, 2).float() / 255
    masks = torch.cat([one.masks for one in loaded]).unsqueeze(1).float()
    return figures.draw(generator, images, masks, str(config.features))


def show(result: dict[str, Any]) -> str:
    if "buckets" not in result:
        return f"{result['exported']} pairs in {result['out']}"
    title = f"{result['name']} · {result['protocol']} · {result['dataset_name']} · {result['ssim']}"
    return f"{title}\n{results.as_text(result)}\n{result['parquet']}"


def _answer(
    config: EvaluateConfig, pairs: Pairs, device: torch.device
) -> tuple[Answer, dict[str, Any]]:
    given = [n for n in ("checkpoint", "model", "predictions") if getattr(config, n) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(f'{n}=' for n in given) or 'nothing'} given to score: "
            "give one of checkpoint=, model=, predictions="
        )
    if config.predictions is not None:
        return pair_images.answers(config.predictions, pairs)
    source = sources.load(config.model, config.checkpoint, config.weights, device)
    facts = {**source.facts, "name": source.name}
    return asking(source.fill, device), facts | recipe(facts)


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


def folder(url: str, same: Mapping[str, Any]) -> str:
    """A folder beside `url` that only work with the same description finds again."""
    word = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    return f"{url}.parts-{word}"


def path(parts: str, number: int) -> str:
    return store.join(parts, f"part-{number:06d}.parquet")


def collect(parts: str, count: int, patience: float = PATIENCE) -> list[pa.Table]:
    """All parts in order, waiting for those of other ranks.

    Raises TimeoutError when none has come for `patience` seconds.
    """
    wanted = [store.name(path(parts, number)) for number in range(count)]
    last, seen = time.monotonic(), -1
    while True:
        there = set(store.names(parts))
        missing = [name for name in wanted if name not in there]
        if not missing:
            return [results.load(store.join(parts, name))[0] for name in wanted]
        if len(there) != seen:
            last, seen = time.monotonic(), len(there)
        if time.monotonic() - last > patience:
            raise TimeoutError(
                f"{len(missing)} of {count} parts of other ranks have not come to "
                f"{store.display(parts)} for {patience:.0f} s, first {missing[0]}: is it a "
                "folder that all machines see? The same command goes on from what is there"
            )
        time.sleep(min(0.5, patience))
