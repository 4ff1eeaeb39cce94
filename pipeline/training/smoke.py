"""`train smoke=true`: a whole run in a few steps, before GPU hours are spent.

Trains every phase for two cycles of its networks at the real batch size, validates and saves; then
resumes from that checkpoint, and exports. It runs in `<run>.smoke`, which is deleted afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from pipeline.config.phases import cycle, shares
from pipeline.config.schema import TrainConfig
from pipeline.runs.folder import RunFolder, folder_at
from pipeline.runs.identity import folder_of
from pipeline.runs.run_json import read_run_json
from shards import files, store

CYCLES = 2  # per phase


def shortened(config: TrainConfig) -> TrainConfig:
    """Shorten to two cycles per phase, without tracking; save and validate only at the end."""
    phases = config.objective.phases
    ends = list(accumulate(CYCLES * cycle(phase) * config.batch for phase in phases))
    short = [replace(p, until=e) for p, e in zip(phases, ends)]
    short[-1] = replace(short[-1], until=None)
    return replace(
        config,
        smoke=False,
        run=folder_of(config).url.rstrip("/") + ".smoke",
        max_images=ends[-1],
        objective=replace(config.objective, phases=short),
        checkpoint=replace(config.checkpoint, every_images=0),
        validate=replace(config.validate, every_images=0),
        tracking=replace(config.tracking, enabled=False),
        log=replace(config.log, every=1),
    )


def smoke(
    config: TrainConfig, start: Callable[[TrainConfig], None], is_first: bool
) -> dict[str, Any]:
    """Run the smoke test; returns the report.

    start: runs this node's workers on a configuration to their end; SystemExit unless they succeed.
    is_first: this is the first node, which cleans up and exports.
    """
    short = shortened(config)
    run = folder_at(str(short.run))
    if is_first:
        _remove(run)
    try:
        start(short)
        first = read_run_json(run.url)
        start(replace(short, max_images=short.max_images + config.batch))
        return _report(config, run, first["result"], first["step_ms"]) if is_first else {}
    finally:
        if is_first:
            _remove(run)


def _report(
    config: TrainConfig, run: RunFolder, first: dict[str, Any], step_ms: dict[str, float]
) -> dict[str, Any]:
    """Export the saved model; report peak memory, and hours at the speed of the fastest cycles."""
    from models.inpainter import Inpainter
    from pipeline.inference import archive
    from pipeline.runs.checkpoints import load_generator

    generator, info = load_generator(run.url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "inpainter.pt2")
        archive.save(Inpainter(generator), path)
        size = path.stat().st_size
    assert info["images_seen"] == first["images_seen"] + config.batch
    objective, batch, length = config.objective, config.batch, config.max_images
    turns = shares(objective.phases, batch, objective.players, length)
    seconds = sum(share * step_ms[str(turn.number)] for share, turn in turns) / 1000
    return {
        "smoke": "passed",
        "phases": len(config.objective.phases),
        "restored_at": first["images_seen"],
        "exported_mb": round(size / 1e6, 1),
        "peak_memory_mb": round(first["perf/peak_memory_mb"]),
        "seconds_a_step": round(seconds, 4),
        "projected_hours": round(seconds * length / batch / 3600, 2),
    }


def _remove(run: RunFolder) -> None:
    assert run.url.endswith(".smoke")
    if not store.is_local(run.url):
        store.remove(run.url, recursive=True)
    files.remove_folder(run.local)
