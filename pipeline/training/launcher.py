"""One launcher a node: it starts the node's workers, passes signals on, and says how it ended.

`RANK` set: this process is a worker. Else `PET_NNODES` set: this node's launcher, with torchrun's
numbers (`PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE PET_MASTER_ADDR PET_MASTER_PORT`). Else a
local launcher with `processes=` workers. Rendezvous is static: rank 0 holds the store. torch is
not imported here, so a launcher costs a node next to nothing.

Exit status: 0 done, 75 stopped on request with everything saved, 78 configuration error, 1 failed.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.common.signals import STOP_SIGNALS
from pipeline.config.schema import TrainConfig
from pipeline.launch.output import PODS
from pipeline.launch.topology import Place, place, process_count
from pipeline.launch.workers import Ended, supervise
from pipeline.runs.checkpoints import images_saved
from pipeline.runs.folder import RunFolder, held
from pipeline.runs.identity import folder_of
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.training.preflight import preflight
from shards import store

EARLY = "before training began"


def main(config: TrainConfig) -> dict[str, Any]:
    """Run `train` as a worker or through workers; leaves by SystemExit unless all went well."""
    if "RANK" in os.environ:
        from pipeline.training.loop import train

        train(config)
        return {}
    for number in STOP_SIGNALS:
        signal.signal(number, _stopped_early)
    here = place(os.environ, process_count(config))
    try:
        run = preflight(config, here.nodes * here.processes, first=here.node_rank == 0)
    except ValueError as error:
        _remember(config, here, " ".join(str(error).split()))
        raise
    if config.smoke:
        return _smoke(config, here)
    log = None  # of a pod's first process its own output is kept, and theirs with it
    if PODS not in os.environ:
        log = store.join(run.url, "logs", f"node-{here.node_rank}.log")
    command = [sys.executable, "-m", "pipeline", *sys.argv[1:]]
    ended = supervise(command, here.workers, log, here.grace, EARLY)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # too late: what there was to save is saved
    if here.node_rank == 0:
        with suppress(ConfigError, OSError):  # a full disk, say: how it ended stays its cause
            _note_end(config, run, ended)
    _leave(ended.status)
    return dict(read_run_json(run.url).get("result", {}), run=run.url)


def _stopped_early(number: int, frame: object) -> None:
    """A request to stop before there are workers, which get it from then on: nothing is lost."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    print(f"stopped ({signal.Signals(number).name}) {EARLY}", file=sys.stderr, flush=True)
    raise SystemExit(os.EX_TEMPFAIL)


def _note_end(config: TrainConfig, run: RunFolder, ended: Ended) -> None:
    """The error, or none any more, in run.json; what failed is over in MLflow too."""
    if read_run_json(run.url):
        update_run_json(run.url, error=ended.error)
    if ended.status:
        with held(run):  # what never began leaves no folder
            if ended.error and config.tracking.enabled:
                from pipeline.tracking import lifecycle

                lifecycle.ended(run.url, ended.error, config.tracking.drain)


def _remember(config: TrainConfig, here: Place, error: str) -> None:
    """A job that was refused where it runs: whoever looks at the run is told why."""
    run = folder_of(config).url
    submitted = "PET_NNODES" in os.environ and store.exists(store.join(run, "config.yaml"))
    if submitted and here.node_rank == 0:
        update_run_json(run, error=error)


def _smoke(config: TrainConfig, here: Place) -> dict[str, Any]:
    from pipeline.training.smoke import smoke

    def start(words: list[str]) -> int:
        command = [sys.executable, "-m", "pipeline", *words]
        return supervise(command, here.workers, grace=here.grace, early=EARLY).status

    status, found = smoke(config, start, is_first=here.node_rank == 0)
    _leave(status)
    return found


def _leave(status: int) -> None:
    """SystemExit unless all went well; the user's own command line gets 2 for what it said."""
    if status == os.EX_CONFIG and "PET_NNODES" not in os.environ:
        status = 2
    if status:
        raise SystemExit(status)


def dry_run(config: TrainConfig) -> str:
    here = place(os.environ, process_count(config))
    run = preflight(config, here.nodes * here.processes, locks=False)
    seen = images_saved(run.url)
    if seen >= config.max_images:
        return f"would do nothing: {store.display(run.url)} has seen {seen} images already"
    start = f"go on at {seen} of" if seen else "start"
    return (
        f"would {start} {config.max_images} images in {store.display(run.url)}, "
        f"{here.nodes * here.processes} processes"
    )
