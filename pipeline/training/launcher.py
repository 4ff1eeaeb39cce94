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
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.config.compose import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.output import PODS
from pipeline.launch.topology import process_count
from pipeline.launch.workers import CONFIGURATION, SAVED, STOP_SIGNALS, Ended, supervise
from pipeline.runs.folder import read_run_json, update_run_json
from pipeline.runs.identity import RunFolder, folder_of, held, images_saved
from pipeline.training.preflight import preflight
from shards import store

EARLY = "before training began"


@dataclass(frozen=True)
class Place:
    """Where this launcher stands in the job."""

    nodes: int
    node_rank: int
    processes: int
    master_addr: str
    master_port: int
    grace: float = 120.0  # seconds that workers get to save

    @property
    def workers(self) -> list[dict[str, str]]:
        return [self.worker(local_rank) for local_rank in range(self.processes)]

    def worker(self, local_rank: int) -> dict[str, str]:
        """Environment of one worker: torch's names."""
        return {
            "RANK": str(self.node_rank * self.processes + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.nodes * self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def place(environment: Mapping[str, str], processes: int) -> Place:
    """The launcher's place; the only function that reads `PET_*`."""
    if "PET_NNODES" not in environment:
        return Place(1, 0, processes, "127.0.0.1", free_port())
    try:
        return Place(
            int(environment["PET_NNODES"]),
            int(environment.get("PET_NODE_RANK", "0")),
            int(environment.get("PET_NPROC_PER_NODE", processes)),
            environment.get("PET_MASTER_ADDR", "127.0.0.1"),
            int(environment.get("PET_MASTER_PORT", "29400")),
            float(environment.get("PET_SHUTDOWN_TIMEOUT", "120")),
        )
    except ValueError as error:
        raise ConfigError(f"PET_* must be numbers as torchrun reads them: {error}") from None


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
    raise SystemExit(SAVED)


def _note_end(config: TrainConfig, run: RunFolder, ended: Ended) -> None:
    """The error, or none any more, in run.json; what failed is over in MLflow too."""
    if read_run_json(run.url):
        update_run_json(run.url, error=ended.error)
    if ended.status:
        with held(run):  # what never began leaves no folder
            if ended.error and config.tracking.enabled:
                from pipeline.tracking import record

                record.ended(run.url, ended.error, config.tracking.drain)


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
    if status == CONFIGURATION and "PET_NNODES" not in os.environ:
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
