"""`bench faults`: what failures cost a small training of two processes that restarts in place.

Once a minute, by a fixed seed, a worker is killed, or stopped so that it hangs; the tracking server
is dead all the time. Seconds are from the kill to the next step that ends; of a hang, from its
detection, `HANG` seconds after the last step. Effective training time is the share of the time in
which, at the speed before the first fault, the images of the curve that stands would be trained.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.bench import images
from pipeline.bench.timing import report, target
from pipeline.bench.tracking import DEAD
from pipeline.common.console import say
from pipeline.launch.workers import workers_of
from pipeline.runs.run_json import read_run_json

HANG = 20  # parallel.hang_timeout, seconds
MEDIAN, WORST = 10.0, 30.0  # seconds
BATCH = 4
WORDS = f"""experiment=quickstart model.width=0.1 data.crop=64 validate.size=64 batch={BATCH}
    max_images=1000000000 processes=2 data.validate=train validate.every_images=0 log.every=1
    checkpoint.every_images=0 checkpoint.every_seconds=10 parallel.hang_timeout={HANG}
    parallel.restart_in_place=true""".split()


def run(faults: int = 10, every: float = 60.0, seed: int = 0) -> dict[str, Any]:
    """Measure: `faults` of them, one `every` seconds."""
    draw = random.Random(seed)
    spans: dict[str, list[float]] = {"kill": [], "hang": []}
    with tempfile.TemporaryDirectory() as scratch:
        images.write(Path(scratch, "set"), 256, per_shard=64)
        folder, places = Path(scratch, "run"), [f"data.url={scratch}/set", f"run={scratch}/run"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "train", *WORDS, *places],
            env={**os.environ, "MLFLOW_TRACKING_URI": DEAD, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        try:
            _until(process, lambda: _steps(folder) >= 5)
            first, began = _steps(folder), time.time()
            time.sleep(every)
            before = _steps(folder)
            rate, began = (before - first) / (time.time() - began), time.time()
            for number in range(faults):
                kind, rank, at = draw.choice(("kill", "hang")), draw.randrange(2), time.time()
                sent = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
                os.kill(workers_of(process.pid)[rank], sent)
                _until(process, partial(_recovered, folder, number + 1))
                last = read_run_json(str(folder))["restarts"][-1]
                spans[kind].append(last["seconds"] + (last["failed"] - at) * (kind == "kill"))
                lost = f"{last['repeated']} images repeated"
                say(f"{kind} of rank {rank}: {spans[kind][-1]:.1f} s, {lost}")
                time.sleep(max(0.0, at + every - time.time()))
            spent, done = time.time() - began, _steps(folder)
        finally:
            process.terminate()
            process.wait()
        lines = (folder / "steps.jsonl").read_text().splitlines()
        seen = [json.loads(line)["images_seen"] for line in lines]
        wrong = sum(a + BATCH != b for a, b in zip([0, *seen], seen))
        repeated = [each["repeated"] for each in read_run_json(str(folder))["restarts"]]
    every_span = [*spans["kill"], *spans["hang"]]
    ratios = {
        "effective training time": (done - before) / rate / spent,
        "images repeated, median": median(repeated),
    }
    targets = {
        "median, s": target(median(every_span), MEDIAN, at_least=False),
        "worst, s": target(max(every_span), WORST, at_least=False),
        "steps out of order": target(wrong, 0, at_least=False),
    }
    rows = [{"name": kind, "seconds": span} for kind, span in spans.items() if span]
    work = {"faults": faults, "every": every, "hang_timeout": HANG, "seed": seed}
    return report("faults", work, rows, ratios, targets)


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
