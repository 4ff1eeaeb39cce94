"""`evaluate`: held-out pictures and fixed masks in, a table of per-image scores and means out.

Batches are fixed groups of consecutive pairs, parts fixed groups of batches. A rank takes every
`world_size`-th part, publishes it as a file when it is scored, and rank 0 joins them: each pair is
scored once, in the same company, so that any world size gives the same table. The same command
continues an interrupted evaluation from the parts that are there.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch

from models import masking
from pipeline.common.inputs import protect
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation import metrics, parts, predictions, results
from pipeline.evaluation import pair_images as gallery
from pipeline.evaluation.facts import pair_up, place_of, recipe
from pipeline.evaluation.pairs import PairBatch, Pairs
from pipeline.evaluation.results import SCHEMA
from pipeline.inference import sources
from shards import store

Inpaint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Answer = Callable[[PairBatch], torch.Tensor]  # uint8 N×H×W×3, what the hole is taken from
CONVENTIONS = tuple(metrics.SSIM_WINDOWS)
READ_AHEAD = 2  # batches decoded while one is inpainted
PART = 16  # batches
RESULT = "LACUNA_RESULT"  # where rank 0 leaves what its launcher returns


def score(
    inpaint: Inpaint,
    pairs: Pairs,
    batch: int = 8,
    device: torch.device | str = "cpu",
    conventions: Iterable[str] = CONVENTIONS,
    rank: int = 0,
    world_size: int = 1,
) -> pa.Table:
    """One row for each of this rank's pairs, columns of `SCHEMA`, in the order of the pairs.

    inpaint: image N×3×H×W float in [0, 1] with its holes erased, mask N×1×H×W (1 = hole), both on
    `device` → N×3×H×W. SSIM columns outside `conventions` are null.
    """
    starts = range(0, len(pairs), batch)[rank::world_size]
    answer = asking(inpaint, device)
    return _score(answer, pairs, starts, batch, device, tuple(conventions))


def asking(inpaint: Inpaint, device: torch.device | str) -> Answer:
    """What a network answers to a batch. The hole is hidden from it."""

    @torch.no_grad()
    def answer(loaded: PairBatch) -> torch.Tensor:
        mask = loaded.masks.to(device).unsqueeze(1).float()
        image = loaded.images.to(device).permute(0, 3, 1, 2).float() / 255
        return metrics.to_bytes(inpaint(masking.erase(image, mask), mask))

    return answer


def fill(inpaint: Inpaint, loaded: PairBatch, device: torch.device | str) -> torch.Tensor:
    """The composites of a batch, uint8 N×H×W×3 on `device`."""
    return _composite(asking(inpaint, device), loaded, device)


def _composite(answer: Answer, loaded: PairBatch, device: torch.device | str) -> torch.Tensor:
    images, masks = loaded.images.to(device), loaded.masks.to(device)
    return metrics.composite_bytes(answer(loaded).to(device), images, masks)


def _score(
    answer: Answer,
    pairs: Pairs,
    starts: Sequence[int],
    batch: int,
    device: torch.device | str,
    conventions: tuple[str, ...],
) -> pa.Table:
    tables = [SCHEMA.empty_table()]
    for start, loaded in batches(pairs, starts, batch):
        result = _composite(answer, loaded, device)
        images, masks = loaded.images.to(device), loaded.masks.to(device)
        values = metrics.measure(result, images, masks, conventions)
        tables.append(_rows(start, loaded, masks, values))
    return pa.concat_tables(tables)


def batches(pairs: Pairs, starts: Sequence[int], batch: int) -> Iterator[tuple[int, PairBatch]]:
    """The batches that begin at `starts`, decoded ahead in threads."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting = [pool.submit(pairs.load, s, s + batch) for s in starts[:READ_AHEAD]]
        for i, start in enumerate(starts):
            loaded = waiting.pop(0).result()
            for ahead in starts[i + READ_AHEAD : i + READ_AHEAD + 1]:
                waiting.append(pool.submit(pairs.load, ahead, ahead + batch))
            yield start, loaded


def _rows(
    start: int, loaded: PairBatch, masks: torch.Tensor, values: dict[str, torch.Tensor]
) -> pa.Table:
    columns: dict[str, Any] = {
        "pair": range(start, start + len(loaded.pairs)),
        "name": [pair.name for pair in loaded.pairs],
        "key": [pair.image.key for pair in loaded.pairs],
        "mask_key": [pair.mask.key for pair in loaded.pairs],
        "bucket": [pair.bucket for pair in loaded.pairs],
        "ratio": masks.double().mean((1, 2)).tolist(),
    }
    for name in metrics.METRICS:
        found = values[name].tolist() if name in values else [None] * len(loaded.pairs)
        columns[name] = pa.array(found, pa.float64(), from_pandas=True)  # NaN → null
    return pa.table(columns, schema=SCHEMA)


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
    from pipeline.launch.topology import visible_gpus
    from pipeline.launch.workers import supervise
    from pipeline.training.launcher import place

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
    from pipeline.launch.device import core_count

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
            predictions.export(pairs, config.export, parts.progress("export", len(pairs)))
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
    shares = parts.folder(url, same)
    starts = range(0, len(pairs), config.batch)
    groups = [starts[i : i + PART] for i in range(0, len(starts), PART)]
    tell = parts.progress(facts["name"], len(pairs), rank == 0)
    for number in range(rank, len(groups), world_size):
        if not store.exists(parts.path(shares, number)):
            table = _score(answer, pairs, groups[number], config.batch, device, CONVENTIONS)
            results.save(parts.path(shares, number), table, {})
        tell(min(len(pairs), (number + 1) * PART * config.batch))
    if rank:
        return {"rank": rank, "pairs": len(pairs)}
    table = results.merge(parts.collect(shares, len(groups)), len(pairs))
    results.save(url, table, facts)
    kept = gallery.save(url, gallery.draw(answer, pairs, gallery.chosen(pairs, config.pictures)))
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
    from pipeline.tracking.record import record
    from pipeline.training.checkpointing import pin

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
    from pipeline.evaluation import figures as features
    from pipeline.training.checkpointing import load_generator

    generator, _ = load_generator(str(config.checkpoint), weights=config.weights)
    loaded = [pairs.load(i, i + 1) for i in gallery.chosen(pairs, 6)[1::2]]
    images = torch.cat([one.images for one in loaded]).permute(0, 3, 1, 2).float() / 255
    masks = torch.cat([one.masks for one in loaded]).unsqueeze(1).float()
    return features.draw(generator, images, masks, str(config.features))


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
        return predictions.answers(config.predictions, pairs)
    source = sources.load(config.model, config.checkpoint, config.weights, device)
    facts = {**source.facts, "name": source.name}
    return asking(source.fill, device), facts | recipe(facts)
