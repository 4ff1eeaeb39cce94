"""Open what `register` reads, before a job of it is queued; without torch and MLflow."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.schema import RegisterConfig
from pipeline.runs import checkpoints


def check_inputs(config: RegisterConfig, readable: Callable[[str | None], bool]) -> None:
    """Raise ValueError unless the run, if it is readable, has the checkpoint."""
    if readable(config.run):
        checkpoints.find(config.run, config.checkpoint)
