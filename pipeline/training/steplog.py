"""steps.jsonl: the curve of a run, one object a line, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math

from torch import Tensor

from pipeline.runs.identity import RunFolder
from pipeline.training.engine import Engine
from shards import store


class StepLog:
    """steps.jsonl: one object a line, means over ranks and over the steps since the last line."""

    def __init__(self, run: RunFolder, engine: Engine, every: int) -> None:
        self.url = store.join(run.url, "steps.jsonl")
        self.path, self.engine, self.every = run.local / "steps.jsonl", engine, every
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def cut(self, images_seen: int) -> None:
        """Drop lines after the checkpoint that the run goes on from, and a torn last line.

        In a bucket lie at least the lines before each checkpoint; what this machine may still have
        of an earlier attempt does not count.
        """
        if not self.engine.is_main:
            return
        try:
            lines = store.read(self.url).decode().splitlines()
        except FileNotFoundError:
            lines = []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["images_seen"] <= images_seen:
                    kept.append(line + "\n")
            except ValueError:
                break
        if kept or self.path.exists():
            store.write(str(self.path), "".join(kept).encode())

    def add(
        self, losses: dict[str, Tensor], images_seen: int, lr: float, skipped: int, flush: bool
    ) -> dict[str, float]:
        """Count a step; at a line's end write it on rank 0 and return its losses on every rank."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1
        if self._count < self.every and not flush:
            return {}
        values = self.engine.means({k: v / self._count for k, v in self._sums.items()})
        self._sums, self._count = {}, 0
        if self.engine.is_main:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"images_seen": images_seen, **finite, "lr": lr, "skipped": skipped}
            try:
                with open(self.path, "a") as out:
                    out.write(json.dumps(line) + "\n")
            except OSError as error:
                raise store.unwritable(self.path, error) from error
        return values
