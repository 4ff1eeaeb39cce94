"""`bench train`: the overhead of the training loop, of the data loader, and of two processes.

Rows, each a training step of MSA-Net: `bare` is forward, losses, backward and Adam in the shortest
loop, on one batch in memory; `loop` is all that `train` does in a step on that batch, without the
tracker (see `bench tracking`): the engine, the vote, the watchdog, the log and the progress meter;
`loader` is the same on batches of a real sharded set. On two processes, `weak` gives each process
the same batch as before, so that perfect scaling takes the same time; `apart` exchanges no
gradients, which separates communication from contention for cores. The FLOP of a step are compared
with the rate of a matrix product on the same device.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import losses
from models.masking import erase
from pipeline.bench import images
from pipeline.bench.timing import alternate, faster, now, report, target
from pipeline.config.compose import compose
from pipeline.config.phases import turn_at
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import Place, free_port
from pipeline.launch.workers import supervise
from pipeline.runs.folder import folder_at
from pipeline.training import flops, method
from pipeline.training.engine import Engine
from pipeline.training.loop import open_stream, step
from pipeline.training.method import Method
from pipeline.training.methods.msanet import MSANet
from pipeline.training.progress import Meter, TrainState
from pipeline.training.run_log import StepLog
from pipeline.training.stepping import Skips, Upload, lowers_scale
from pipeline.training.watchdog import Watchdog
from shards.manifest import open_manifest

WAIT, OVERHEAD = 0.02, 0.03


def run(
    repetitions: int = 5, width: float | None = None, side: int | None = None
) -> dict[str, Any]:
    """Measure; defaults: the whole MSA-Net at 256 pixels with a GPU, else a small one."""
    on_gpu = torch.cuda.is_available()
    work: dict[str, Any] = {
        "model": "msanet",
        "width": width or (1.0 if on_gpu else 0.25),
        "side": side or (256 if on_gpu else 96),
        "batch": 16 if on_gpu else 4,
        "steps": 10 if on_gpu else 3,
        "repetitions": repetitions,
    }
    with tempfile.TemporaryDirectory() as scratch:
        images.write(Path(scratch, "set"), 256, per_shard=64)
        alone = _workers(scratch, work, 1, ["bare", "loop", "loader"])
        rows = alone["rows"]
        if not on_gpu or torch.cuda.device_count() > 1:
            rows += _workers(scratch, work, 2, ["weak", "apart"])["rows"]
    overhead = faster(rows, "bare", "loop", "seconds") - 1
    ratios = {
        "loop / bare - 1": overhead,
        "data wait": alone["wait"],
        "loop's share of matrix product": alone["of_product"],
    }
    if len(rows) > 3:
        weak = faster(rows, "weak", "loop", "seconds")
        exchange = 1 - faster(rows, "weak", "apart", "seconds")
        ratios["weak scaling, 1 -> 2"] = weak
        ratios["share of communication"] = exchange
        ratios["share of contention"] = 1 - exchange - weak
    targets = {
        "loop's overhead": target(overhead, OVERHEAD, at_least=False),
        "data wait": target(alone["wait"], WAIT, at_least=False),
    }
    return report("train", work, rows, ratios, targets)


def _workers(scratch: str, work: dict[str, Any], processes: int, rows: list[str]) -> dict[str, Any]:
    """Measure `rows` in a group of worker processes, started as by the launcher."""
    place = Place(1, 0, processes, "127.0.0.1", free_port())
    out = Path(scratch, f"{processes}.json")
    given = json.dumps({**work, "rows": rows, "set": f"{scratch}/set", "out": str(out)})
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    command = [sys.executable, "-m", "pipeline.bench.train", given]
    if supervise(command, [{**threads, **worker} for worker in place.workers]).status:
        raise RuntimeError(f"bench train: one of {processes} processes failed, see its error above")
    return dict(json.loads(out.read_text()))


def _measure(given: dict[str, Any]) -> None:
    """Measure, as one worker, all rows in turn, round after round; rank 0 writes the result."""
    engine = Engine(_config(given))
    waits: list[float] = []
    rows = alternate(
        {name: partial(_steps, _row(name, given, engine, waits), given) for name in given["rows"]},
        given["repetitions"],
    )
    if engine.is_main:
        result: dict[str, Any] = {"rows": rows}
        if waits:
            named = {row["name"]: row["seconds"] for row in rows}
            result["wait"] = sum(waits[given["steps"] :]) / sum(named["loader"])
            result["of_product"] = _of_product(given, engine, statistics.median(named["loop"]))
        Path(given["out"]).write_text(json.dumps(result))
    engine.close()


def _of_product(given: dict[str, Any], engine: Engine, seconds: float) -> float:
    """Return the share of the FLOP/s of a large matrix product that steps of `seconds` achieve."""
    networks = method.build(_config(given), engine)
    flop = flops.flop_per_image(networks, engine, _config(given))
    side = 8192 if engine.device.type == "cuda" else 1024
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(engine.precision, torch.float32)
    left = torch.ones(side, side, device=engine.device, dtype=dtype)
    spent = []
    for _ in range(10):
        began = now()
        left @ left
        spent.append(now() - began)
    rate = 2 * side**3 / min(spent)
    return float(given["steps"] * given["batch"] * flop / seconds / rate)


def _steps(take: Callable[[], None], given: dict[str, Any]) -> int:
    for _ in range(given["steps"]):
        take()
    return int(given["steps"] * given["batch"])


def _row(
    name: str, given: dict[str, Any], engine: Engine, waits: list[float]
) -> Callable[[], None]:
    """Return a function that takes one training step of the row `name`."""
    config = _config(given)
    networks = method.build(config, engine)
    engine.start(networks.players)
    turn = turn_at(config.objective.phases, 0, config.batch, config.objective.players)
    networks.begin(turn)
    drawn = torch.Generator().manual_seed(engine.rank)
    shape = (given["batch"], given["side"], given["side"])
    pixels = torch.randint(0, 256, (*shape, 3), generator=drawn).to(torch.uint8)
    masks = (torch.rand(shape, generator=drawn) < 0.3).to(torch.uint8)
    if name == "bare":
        return lambda: _bare(networks, engine, pixels, masks)
    run = folder_at(f"{given['out']}.{name}")
    run.local.mkdir(exist_ok=True)
    log = StepLog(run, engine, 20 if engine.device.type == "cuda" else 1)
    meter = Meter(0, 1 << 40, False, engine.world_size)
    skips, upload = Skips(TrainState(), late=int(engine.on_device)), Upload(engine.device)
    # The watchdog's thread wakes every five seconds; rows take turns, so it disturbs all alike.
    watch = Watchdog(engine.rank, 1, 300)
    stream = None
    if name == "loader":
        stream = open_stream(config, engine, open_manifest(given["set"]), 0)

    def take() -> None:
        nonlocal pixels, masks
        began, waited, seen = time.perf_counter(), 0.0, meter.images_seen
        watch.mark(seen, "waiting for data")
        if stream is not None:
            batch = next(stream)
            waited = time.perf_counter() - began
            waits.append(waited)
            pixels, masks = batch.images, batch.masks
        watch.mark(seen, "computing")
        image, mask = upload(pixels, masks)
        if name == "apart":
            with engine.micro_batch(networks.players, last=False):
                losses = step(networks, engine, image, mask, config)
        else:
            losses = step(networks, engine, image, mask, config)
        stepped = engine.step(networks.players, 0.0)
        skips.add(stepped, lowers_scale(networks.players, engine.device))
        watch.mark(seen, "voting")
        engine.vote(False)
        skips.read(now=log.due)
        logged = log.add(losses, seen, turn.lr, 0, flush=False)
        meter.step(config.batch, time.perf_counter() - began, waited, logged)

    return take


def _config(given: dict[str, Any]) -> TrainConfig:
    config: TrainConfig = compose(
        "train",
        [
            "experiment=quickstart",
            "objective.perceptual=0.001",
            "objective.style=1",
            "ema=0",
            "loader_threads=1",
            f"model.width={given['width']}",
            f"data.crop={given['side']}",
            f"data.url={given['set']}",
            f"batch={given['batch'] * int(os.environ['WORLD_SIZE'])}",
            f"threads={os.environ['OMP_NUM_THREADS']}",
        ],
    ).config
    return config


def _bare(networks: Method, engine: Engine, pixels: Tensor, masks: Tensor) -> None:
    """Take one step: forward passes, losses, backward and Adam, nothing else."""
    assert isinstance(networks, MSANet)
    generator, objective = networks.players[0], networks.objective
    image = pixels.to(engine.device).permute(0, 3, 1, 2).float() / 255
    mask = masks.to(engine.device).unsqueeze(1).float()
    with engine.autocast():
        prediction = generator(erase(image, mask), mask)
        targets = networks.targets(image)
        features = list(prediction.features.values())
        loss = objective.l2 * losses.l2(prediction.image, image)
        loss = loss + objective.perceptual * losses.perceptual(features, targets)
        loss = loss + objective.style * losses.style(features, targets)
    loss.backward()
    generator.optimizer.step()
    generator.optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    _measure(json.loads(sys.argv[1]))
