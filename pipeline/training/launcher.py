"""The launcher, one on each node: starts the node's workers, forwards signals, records the end.

With `RANK` in the environment this process is a worker. With `PET_NNODES` it is the launcher of
one node of a job, numbered as by torchrun (`PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE
PET_MASTER_ADDR PET_MASTER_PORT`). Otherwise it is a local launcher with `processes=` workers.
Rendezvous is static: rank 0 holds the store. torch is
not imported here, which keeps the launcher's memory and start-up time small.

Workers that fail are started again in place, up to `cluster.retries` times in a row without a new
checkpoint, unless their error would recur at once (configuration, divergence, a full disk).

The launcher resolves the configuration once and writes it to a file; its workers start from that
file, so that a folder of configurations that changes meanwhile cannot make them differ.

Exit status: 0 done, 75 stopped on request with everything saved, 78 configuration error, 1 failed.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial
from typing import Any

from pipeline.common.console import say
from pipeline.common.errors import ConfigError, one_line
from pipeline.common.signals import OUTSIDE_STOPS, STOP_SIGNALS, ignore, obeyed
from pipeline.config.schema import TrainConfig
from pipeline.launch.output import PODS
from pipeline.launch.restarts import Restarts
from pipeline.launch.topology import check_precision, place, process_count
from pipeline.launch.workers import Ended, run_workers, wait_until_needed
from pipeline.runs.checkpoints import images_saved
from pipeline.runs.folder import RunFolder, held
from pipeline.runs.identity import folder_of, resolve_auto
from pipeline.runs.run_json import change_run_json, read_run_json, update_run_json
from pipeline.training.preflight import preflight
from shards import store

EARLY = "before training began"


def main(config: TrainConfig) -> dict[str, Any]:
    """Train as a worker if RANK is set, else start workers; SystemExit unless they succeed."""
    if "RANK" in os.environ:
        from pipeline.training.loop import preload, train

        preload(config)
        wait_until_needed()
        train(config)
        return {}
    for number in obeyed(STOP_SIGNALS):
        signal.signal(number, _stopped_early)
    here = place(os.environ, process_count(config))
    try:
        check_precision(config.precision)
        run = preflight(config, here.nodes * here.processes, first=here.node_rank == 0)
    except ValueError as error:
        refused(config, one_line(error))
        raise
    if config.smoke:
        from pipeline.training.smoke import smoke

        def start(short: TrainConfig) -> None:
            name = folder_of(short).name
            _exit_unless_ok(run_workers("train", short, here, name, early=EARLY).status)

        return smoke(config, start, is_first=here.node_rank == 0)
    log = None  # in a pod `with_job_log` logs this process and its workers
    if PODS not in os.environ:
        log = store.join(run.url, "logs", f"node-{here.node_rank}.log")
    saved, record = partial(images_saved, run.url), partial(_record_restart, run.url)
    retries = config.cluster.retries if config.parallel.restart_in_place else 0
    restarts = Restarts(here, retries, saved, record)
    ended = run_workers("train", config, here, run.name, log, EARLY, restarts)
    restarts.close(in_order=ended.status in (0, os.EX_TEMPFAIL))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ignore(OUTSIDE_STOPS)  # too late: the workers have saved
    facts = None
    if here.node_rank == 0:
        with suppress(ConfigError, OSError):  # such as a full disk: report the workers' error
            facts = _record_end(config, run, ended)
    _exit_unless_ok(ended.status)
    return dict((facts or read_run_json(run.url)).get("result", {}), run=run.url)


def _stopped_early(number: int, frame: object) -> None:
    """Exit on a stop signal before there are workers: there is nothing to save."""
    ignore(STOP_SIGNALS)
    say(f"stopped ({signal.Signals(number).name}) {EARLY}")
    raise SystemExit(os.EX_TEMPFAIL)


def _record_restart(run: str, cause: str, failed: float) -> None:
    """Add a failure to the run's `restarts`; the next workers add the time that it cost."""

    def add(known: dict[str, Any]) -> dict[str, Any]:
        before = known.get("restarts", [])
        for each in before[-1:]:  # workers that failed before their first step
            each.setdefault("seconds", round(failed - each["failed"], 3))
        return {"restarts": [*before, {"cause": cause, "failed": failed}]}

    change_run_json(run, add)


def _record_end(config: TrainConfig, run: RunFolder, ended: Ended) -> dict[str, Any] | None:
    """Set or clear the error in run.json and return it; end a failed run in MLflow too."""
    facts = None
    if store.exists(store.join(run.url, "run.json")):
        facts = update_run_json(run.url, error=ended.error)
    if ended.status:
        with held(run):  # removes the folder of a run that never began
            if ended.error and config.tracking.enabled:
                from pipeline.tracking import lifecycle

                lifecycle.ended(run.url, ended.error, config.tracking.drain)
    return facts


def refused(config: TrainConfig, error: str) -> None:
    """Record in a submitted run's run.json why its job was refused; `status` shows it."""
    run, first = folder_of(config).url, place(os.environ, 1).node_rank == 0
    if "PET_NNODES" in os.environ and first and store.exists(store.join(run, "config.yaml")):
        update_run_json(run, error=error)


def _exit_unless_ok(status: int) -> None:
    """Exit unless the status is 0; outside a job a configuration error is 2, not 78."""
    if status == os.EX_CONFIG and "PET_NNODES" not in os.environ:
        status = 2
    if status:
        raise SystemExit(status)


def dry_run(config: TrainConfig) -> str:
    """Check the configuration and describe what `train` would do."""
    here = place(os.environ, process_count(config))
    check_precision(config.precision)
    run = preflight(config, here.nodes * here.processes, locks=False)
    seen = run.images_saved
    if seen >= config.max_images:
        return f"would do nothing: {store.display(run.url)} has seen {seen} images already"
    from pipeline.training.forecast import forecast  # imports torch

    world_size = here.nodes * here.processes
    start = f"resume at {seen} of" if seen else "start"
    lines = [
        f"would {start} {config.max_images} images in {store.display(run.url)}, "
        f"{world_size} process{'es' if world_size > 1 else ''}",
        *forecast(resolve_auto(config, run), world_size, config.max_images - seen),
    ]
    return "\n".join(lines)
