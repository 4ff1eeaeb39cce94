"""`train smoke=true`: the whole life of a run in a few steps, before GPU hours are spent.

Every phase through two steps at the real batch, validation, a checkpoint; a second start that
restores it and goes on; the export. It happens in `<run>.smoke`, which is gone afterwards.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.schema import TrainConfig
from pipeline.runs.folder import RunFolder, folder_at
from pipeline.runs.identity import folder_of, write_config
from pipeline.runs.run_json import read_run_json
from shards import store

STEPS = 2  # of each phase


def shortened(config: TrainConfig) -> TrainConfig:
    """Two steps of each phase, nothing tracked, saved and validated at the end."""
    phases = config.objective.phases
    ends = [STEPS * config.batch * (i + 1) for i in range(len(phases))]
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
    config: TrainConfig, start: Callable[[list[str]], int], is_first: bool
) -> tuple[int, dict[str, Any]]:
    """Exit status of the first start that did not end well, else 0; and what was found.

    start: runs workers with these words of `python -m pipeline` to their end, on this node.
    is_first: this is the first node, which cleans up and exports.
    """
    short = shortened(config)
    run = folder_at(str(short.run))
    if is_first:
        _remove(run)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for more in (0, config.batch):
                resolved = RunFolder(run.url, Path(folder))
                write_config(replace(short, max_images=short.max_images + more), resolved)
                status = start(["train", f"config={folder}/config.yaml"])
                if status:
                    return status, {}
                if not more:
                    first = read_run_json(run.url).get("result", {})
            return 0, _report(config, run, first, Path(folder)) if is_first else {}
    finally:
        if is_first:
            _remove(run)


def _report(
    config: TrainConfig, run: RunFolder, first: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Export what was saved; peak memory, and hours at the speed of the fastest step."""
    from models.inpainter import Inpainter
    from pipeline.inference import archive
    from pipeline.runs.checkpoints import load_generator

    generator, info = load_generator(run.url)
    archive.save(Inpainter(generator), folder / "inpainter.pt2")
    assert info["images_seen"] == first["images_seen"] + config.batch
    seconds = first["perf/step_ms_min"] / 1000
    return {
        "smoke": "passed",
        "phases": len(config.objective.phases),
        "restored_at": first["images_seen"],
        "exported_mb": round((folder / "inpainter.pt2").stat().st_size / 1e6, 1),
        "peak_memory_mb": round(first["perf/peak_memory_mb"]),
        "seconds_a_step": round(seconds, 4),
        "projected_hours": round(seconds * config.max_images / config.batch / 3600, 2),
    }


def _remove(run: RunFolder) -> None:
    assert run.url.endswith(".smoke")
    if not store.is_local(run.url):
        store.remove(run.url, recursive=True)
    shutil.rmtree(run.local, ignore_errors=True)
