"""One launcher a node: it starts the node's workers, passes signals on, and says how it ended.

`RANK` set: this process is a worker. Else `PET_NNODES` set: this node's launcher, with torchrun's
numbers (`PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE PET_MASTER_ADDR PET_MASTER_PORT`). Else a
local launcher with `processes=` workers. Rendezvous is static: rank 0 holds the store. torch is
not imported here, so a launcher costs a node next to nothing.

Exit status: 0 done, 75 stopped on request with everything saved, 78 configuration error, 1 failed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipeline.compose import ConfigError
from pipeline.config import DataConfig, TrainConfig
from pipeline.identity import RunFolder, check_same, folder_of, held
from pipeline.phases import check_phases
from shards.manifest import Manifest

SAVED, CONFIGURATION = 75, 78
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """Where this launcher stands in the job."""

    nodes: int
    node_rank: int
    processes: int
    master_addr: str
    master_port: int

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
        )
    except ValueError as error:
        raise ConfigError(f"PET_* must be numbers as torchrun reads them: {error}") from None


def main(config: TrainConfig) -> dict[str, Any]:
    """Run `train` as a worker or through workers; leaves by SystemExit unless all went well."""
    if "RANK" in os.environ:
        from pipeline.train import train

        train(config)
        return {}
    from pipeline.runfolder import read_run_json

    here = place(os.environ, process_count(config))
    run = preflight(config, here.nodes * here.processes, locks=here.node_rank == 0)
    status = supervise([sys.executable, "-m", "pipeline", *sys.argv[1:]], here)
    if status == CONFIGURATION and "PET_NNODES" not in os.environ:
        status = 2
    if status:
        raise SystemExit(status)
    return dict(read_run_json(run.url).get("result", {}), run=run.url)


def preflight(config: TrainConfig, world_size: int, locks: bool = True) -> RunFolder:
    """Refuse here, in one line and before any worker starts, what would end every one of them.

    `locks`: on the first node, whose rank 0 holds the run; others may come while it does already.
    """
    from shards.manifest import open_manifest

    check_phases(config.objective.phases)
    if config.parallel.strategy.startswith("zero") and find_spec("deepspeed") is None:
        raise ConfigError(
            f"parallel={config.parallel.strategy} needs DeepSpeed, which is not installed: "
            f"DS_BUILD_OPS=0 pip install -e .[deepspeed], or parallel=ddp"
        )
    for name, least in (("seed", 0), ("batch", 1), ("accumulate", 1), ("max_images", 1)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name}={getattr(config, name)} is too small: at least {least}")
    if config.batch % (world_size * config.accumulate):
        raise ConfigError(
            f"batch={config.batch} is not divisible by {world_size} processes x "
            f"accumulate={config.accumulate}: choose a multiple of {world_size * config.accumulate}"
        )
    if config.data.url is None:
        raise ConfigError("data.url= is missing: the sharded set to train on (`shard` makes one)")
    manifest = open_manifest(config.data.url)
    for key, split in (("train", config.data.train), ("validate", config.data.validate)):
        if not manifest.splits.get(split):
            there = ", ".join(sorted(manifest.splits))
            raise ConfigError(f"data.{key}={split} is no split of {manifest.url} (it has {there})")
    check_crop(config.data, manifest)
    run = folder_of(config)
    check_same(config, run)
    if locks:
        with held(run):
            return run  # rank 0 holds it from now on
    return run


def check_crop(data: DataConfig, manifest: Manifest) -> None:
    """Refuse a crop that the pictures do not hold, by the first shard's index."""
    from shards.manifest import read_index

    if data.crop_mode == "resized" or (data.resize_short or 0) >= data.crop:
        return
    if data.resize_short is not None:
        raise ConfigError(
            f"data.crop={data.crop} is larger than data.resize_short={data.resize_short}: "
            f"resize to at least the crop"
        )
    index = read_index(manifest, data.train, manifest.splits[data.train].shards[0])
    sides = [min(s) for s in zip(index["width"].to_pylist(), index["height"].to_pylist())]
    if sides and min(sides) < data.crop:
        raise ConfigError(
            f"data.crop={data.crop} is larger than pictures of {manifest.url}: the smallest side "
            f"in its first shard is {min(sides)}; lower it, or set data.resize_short="
        )


def process_count(config: TrainConfig) -> int:
    """`processes=`: a number, or one for each GPU, else 1."""
    if config.parallel.strategy == "single":
        return 1
    if config.processes == "auto":
        return max(1, visible_gpus())
    if not config.processes.isdigit() or int(config.processes) < 1:
        raise ConfigError(f"processes={config.processes} is no count; give 1, 2, … or auto")
    return int(config.processes)


def visible_gpus() -> int:
    """CUDA devices this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def supervise(command: list[str], here: Place, grace: float = 120.0) -> int:
    """Start one worker a process, pass signals on, end all when one fails.

    Workers are killed by the kernel when this launcher dies. When a worker ends badly the others
    get `grace` seconds after SIGTERM: those that can, save.
    """
    stop: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in STOP_SIGNALS}
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, **here.worker(local_rank)},
            preexec_fn=_die_with_parent,
            stdout=None if local_rank == 0 else sys.stderr,
        )
        for local_rank in range(here.processes)
    ]
    deadline = None
    try:
        while any(w.poll() is None for w in workers):
            if stop and deadline is None:
                deadline = _pass_on(workers, signal.SIGTERM, grace)
            if deadline is None and any(w.poll() not in (None, 0) for w in workers):
                deadline = _pass_on(workers, signal.SIGTERM, grace)
            if deadline is not None and time.monotonic() > deadline:
                _pass_on(workers, signal.SIGKILL, 0)
            time.sleep(0.05)
    finally:
        _pass_on(workers, signal.SIGKILL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    return outcome([w.wait() for w in workers])


def outcome(statuses: list[int]) -> int:
    """The node's exit status from its workers': the first of 78, 75 that any had, else 0 or 1.

    A worker killed while the others saved and left with 75 was lost, not saved: that is 1.
    """
    if CONFIGURATION in statuses:
        return CONFIGURATION
    if all(status == 0 for status in statuses):
        return 0
    if all(status in (0, SAVED) for status in statuses):
        return SAVED
    return 1


def _pass_on(workers: list[subprocess.Popen[bytes]], number: int, grace: float) -> float:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)
    return time.monotonic() + grace


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
