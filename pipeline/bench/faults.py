"""`bench faults`: what failures cost a training of two processes that restarts in place.

Once a minute, by a fixed seed, a worker is killed, or stopped so that it hangs; the tracking server
is dead all the time. Seconds are from the kill to the next step that ends; of a hang, from its
detection, `HANG` seconds after the last step. Effective training time is the share of the time in
which, at the speed before the first fault, the images of the curve that stands would be trained.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.bench import images
from pipeline.bench.timing import report, target
from pipeline.bench.tracking import DEAD
from pipeline.common.console import say
from pipeline.launch.workers import workers_of
from pipeline.runs.run_json import read_run_json

HANG = 20  # parallel.hang_timeout, seconds
MEDIAN, WORST = 10.0, 30.0  # seconds
BATCH = 4


def run(faults: int = 10, every: float = 60.0, seed: int = 0) -> dict[str, Any]:
    """Measure: `faults` of them, one `every` seconds."""
    draw = random.Random(seed)
    spans: dict[str, list[float]] = {"kill": [], "hang": []}
    with tempfile.TemporaryDirectory() as scratch:
        images.write(Path(scratch, "set"), 256, per_shard=64)
        folder = Path(scratch, "run")
        process = subprocess.Popen(
            _command(scratch),
            env={**os.environ, "MLFLOW_TRACKING_URI": DEAD, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        try:
            _until(process, lambda: _steps(folder) >= 5)
            began, first = time.time(), _steps(folder)
            time.sleep(every)
            rate, before = (_steps(folder) - first) / (time.time() - began), _steps(folder)
            began = time.time()
            for number in range(faults):
                kind, rank = draw.choice(("kill", "kill", "hang")), draw.randrange(2)
                at = time.time()
                number_of = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
                os.kill(workers_of(process.pid)[rank], number_of)
                _until(process, partial(_recovered, folder, number + 1))
                last = read_run_json(str(folder))["restarts"][-1]
                since = at if kind == "kill" else last["failed"]
                seconds = last["failed"] + last["seconds"] - since
                spans[kind].append(seconds)
                say(f"{kind} of rank {rank}: {seconds:.1f} s, {last['repeated']} images repeated")
                time.sleep(max(0.0, at + every - time.time()))
            spent, done = time.time() - began, _steps(folder)
        finally:
            process.terminate()
            process.wait()
        lines = (folder / "steps.jsonl").read_text().splitlines()
        seen = [json.loads(line)["images_seen"] for line in lines]
        wrong = len(set(range(BATCH, BATCH * len(seen) + 1, BATCH)) ^ set(seen))
        wrong += len(seen) - len(set(seen))
        repeated = [each.get("repeated", 0) for each in read_run_json(str(folder))["restarts"]]
    rows = [{"name": kind, "seconds": spent} for kind, spent in spans.items() if spent]
    median, worst = statistics.median(sum(spans.values(), [])), max(sum(spans.values(), []))
    ratios = {
        "effective training time": (done - before) / rate / spent,
        "seconds to the next step, median": median,
        "seconds to the next step, worst": worst,
        "images repeated, median": statistics.median(repeated),
        "images lost or seen twice": float(wrong),
    }
    targets = {
        "median, s": target(median, MEDIAN, at_least=False),
        "worst, s": target(worst, WORST, at_least=False),
        "lost or seen twice": target(wrong, 0, at_least=False),
    }
    work = {"processes": 2, "faults": faults, "every": every, "hang_timeout": HANG, "seed": seed}
    return report("faults", work, rows, ratios, targets)


def _command(scratch: str) -> list[str]:
    on_gpu = torch.cuda.is_available()
    words = {
        "experiment": "quickstart",
        "model.width": 1.0 if on_gpu else 0.1,
        "data.crop": 256 if on_gpu else 64,
        "batch": BATCH,
        "max_images": 10**9,
        "processes": 2,
        "data.url": f"{scratch}/set",
        "data.validate": "train",
        "validate.every_images": 0,
        "checkpoint.every_images": 0,
        "checkpoint.every_seconds": 10,
        "parallel.hang_timeout": HANG,
        "log.every": 1,
        "run": f"{scratch}/run",
    }
    return [sys.executable, "-m", "pipeline", "train", *(f"{k}={v}" for k, v in words.items())]


def _until(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    while not reached():
        if process.poll() is not None:
            raise RuntimeError("bench faults: the training ended, see its error above")
        time.sleep(0.1)


def _steps(folder: Path) -> int:
    log = folder / "steps.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def _recovered(folder: Path, count: int) -> bool:
    restarts = read_run_json(str(folder)).get("restarts", [])
    return sum("repeated" in each for each in restarts) >= count
