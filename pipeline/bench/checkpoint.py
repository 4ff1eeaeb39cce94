"""`bench checkpoint`: how long training stands still while a checkpoint of 128 MB is saved.

Ours copies the tensors off the device and writes from a thread; the baseline is `torch.save` of
the same tensors into a file on the same disk, and waiting for it, as most loops do. `whole` is the
time until our files are there, hashed and named by `state.json`.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.bench.timing import report, target
from pipeline.runs.folder import folder_at
from pipeline.training.checkpointing import Saver

STALL_MS = 100.0
MEGABYTES = 128


def run(megabytes: int = MEGABYTES, repetitions: int = 5) -> dict[str, Any]:
    """Rows `stall`, `whole` and `torch.save`, in turn; the target is the middle stall."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = _state(megabytes, device)
    times: dict[str, list[float]] = {"stall": [], "whole": [], "torch.save": []}
    with tempfile.TemporaryDirectory() as scratch:
        saver = Saver(folder_at(str(Path(scratch, "run"))), keep=1)
        for turn in range(repetitions + 1):
            began = _now()
            saver.save(turn + 1, {"generator": tensors}, {"model": {}, "dataset": "noise"})
            stalled = _now()
            saver.wait()
            written = _now()
            torch.save(tensors, Path(scratch, "baseline.pt"))
            plain = _now()
            if turn:  # the first round warms allocator and disk
                times["stall"].append(stalled - began)
                times["whole"].append(written - began)
                times["torch.save"].append(plain - written)
            print(f"round {turn} of {repetitions}", file=sys.stderr)
        saver.close()
    middle = {name: statistics.median(spent) for name, spent in times.items()}
    rows = [{"name": name, "seconds": spent} for name, spent in times.items()]
    ratios = {"torch.save / our stall": middle["torch.save"] / middle["stall"]}
    stall = target(1000 * middle["stall"], STALL_MS, at_least=False)
    work = {"megabytes": megabytes, "tensors": len(tensors)}
    return report("checkpoint", work, rows, ratios, {"stall, ms": stall})


def _state(megabytes: int, device: str) -> dict[str, Tensor]:
    """Tensors of 0.5 MB, as networks of some ten million weights have them, with Adam's moments."""
    side = 131_072
    return {f"layer{i:04d}": torch.randn(side, device=device) for i in range(2 * megabytes)}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
