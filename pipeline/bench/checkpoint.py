"""`bench checkpoint`: how long saving a checkpoint of 128 MB stops training.

Ours copies the tensors off the device (`stall`) and writes them from a thread (`in the thread`:
until they are written, hashed and listed in `state.json`); the baseline is `torch.save` of the same
tensors into a file on the same disk, waiting until it returns, as most loops do.
"""

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.timing import alternate, compare, report, target
from pipeline.runs.folder import folder_at
from pipeline.training.checkpointing import Saver

STALL_MS = 100.0


def run(megabytes: int = 128, repetitions: int = 5) -> dict[str, Any]:
    """Measure the rows in turn; the target is the median stall."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # 0.5 MB each, as the tensors of a network and of Adam's moments
    tensors = {f"layer{i:04d}": torch.randn(131_072, device=device) for i in range(2 * megabytes)}
    steps = itertools.count(1)
    with tempfile.TemporaryDirectory() as scratch:
        saver = Saver(folder_at(str(Path(scratch, "run"))), keep=1)

        def save() -> int:
            saver.save(next(steps), {"generator": tensors}, {"model": {}, "dataset": "noise"})
            return megabytes

        def wait() -> int:
            saver.wait()
            return megabytes

        def plain() -> int:
            torch.save(tensors, Path(scratch, "baseline.pt"))
            return megabytes

        rows = alternate({"stall": save, "in the thread": wait, "torch.save": plain}, repetitions)
        saver.close()
    ratios, _ = compare(rows, {"torch.save / our stall": ("stall", "torch.save", None)}, "seconds")
    stall = target(1000 * statistics.median(rows[0]["seconds"]), STALL_MS, at_least=False)
    work = {"megabytes": megabytes, "tensors": len(tensors)}
    return report("checkpoint", work, rows, ratios, {"stall, ms": stall})
