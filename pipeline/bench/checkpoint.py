"""`bench checkpoint`: how long saving a checkpoint of 128 MB stops training.

Ours copies the tensors off the device and writes from a thread; the baseline is `torch.save` of
the same tensors into a file on the same disk, waiting until it returns, as most loops do. `whole`
is the time until our files are written, hashed and listed in `state.json`.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.bench.timing import now, report, rounds, target
from pipeline.runs.folder import folder_at
from pipeline.training.checkpointing import Saver

STALL_MS = 100.0
MEGABYTES = 128


def run(megabytes: int = MEGABYTES, repetitions: int = 5) -> dict[str, Any]:
    """Measure `stall`, `whole` and `torch.save` in turn; the target is the median stall."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = _state(megabytes, device)
    times: dict[str, list[float]] = {"stall": [], "whole": [], "torch.save": []}
    with tempfile.TemporaryDirectory() as scratch:
        saver = Saver(folder_at(str(Path(scratch, "run"))), keep=1)
        for turn, counts in enumerate(rounds(repetitions)):
            began = now()
            saver.save(turn + 1, {"generator": tensors}, {"model": {}, "dataset": "noise"})
            stalled = now()
            saver.wait()
            written = now()
            torch.save(tensors, Path(scratch, "baseline.pt"))
            plain = now()
            if counts:  # the first round warms allocator and disk
                times["stall"].append(stalled - began)
                times["whole"].append(written - began)
                times["torch.save"].append(plain - written)
        saver.close()
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    rows = [{"name": name, "seconds": spent} for name, spent in times.items()]
    ratios = {"torch.save / our stall": medians["torch.save"] / medians["stall"]}
    stall = target(1000 * medians["stall"], STALL_MS, at_least=False)
    work = {"megabytes": megabytes, "tensors": len(tensors)}
    return report("checkpoint", work, rows, ratios, {"stall, ms": stall})


def _state(megabytes: int, device: str) -> dict[str, Tensor]:
    """Tensors of 0.5 MB each, `megabytes` together, as a network and Adam's moments have them."""
    side = 131_072
    return {f"layer{i:04d}": torch.randn(side, device=device) for i in range(2 * megabytes)}
