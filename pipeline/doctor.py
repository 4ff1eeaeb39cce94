"""`doctor`: check this machine, one line a check, with a hint for what fails."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.console import say
from pipeline.common.environment import cache_dir, core_count
from pipeline.common.errors import ConfigError, one_line
from pipeline.common.locks import hold
from pipeline.common.secrets import redact
from pipeline.config.schema import DoctorConfig

NEEDED_GB = 5


class Check(NamedTuple):
    """The result of one check; `state` is ok, note (works, with a restriction) or bad."""

    name: str
    state: str
    found: str
    hint: str = ""


def main(config: DoctorConfig) -> dict[str, Any]:
    """Print every check of this machine; SystemExit(1) if one is bad.

    In a job each node's launcher does so, and its workers exchange numbers with all others.
    """
    if "RANK" in os.environ:
        _say(exchanged())
        return {}
    todo = [python, torch_build, devices, precision, packages, disk, cache, weights]
    todo += [tracking, scheduler, secrets]
    if config.url is not None:
        todo.append(lambda: storage(str(config.url)))
    if "PET_NNODES" in os.environ:
        todo.append(all_reduce)
    checks = []
    for check in todo:
        checks.append(Check(*map(redact, check())))
        _say(checks[-1])
    if any(check.state == "bad" for check in checks):
        raise SystemExit(1)
    # `mend` is the former name of `hint`, kept for one release.
    return {"checks": [{**check._asdict(), "mend": check.hint} for check in checks]}


def _say(check: Check) -> None:
    hint = f"  -> {check.hint}" if check.hint else ""
    say(f"{check.state:<5} {check.name:<12} {check.found}{hint}")


def show(result: dict[str, Any]) -> str:
    notes = sum(check["state"] == "note" for check in result["checks"])
    return f"{len(result['checks'])} checks, none bad, {notes} with a note"


def python() -> Check:
    here = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    hint = "" if ok else "make install PYTHON=python3.12"
    return Check("python", "ok" if ok else "bad", f"{here} at {sys.executable}", hint)


def torch_build() -> Check:
    import torch

    parts = tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2])
    ok = parts >= (2, 11)
    hint = "" if ok else "make install (constraints.txt names the tested version)"
    return Check("torch", "ok" if ok else "bad", torch.__version__, hint)


def devices() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("devices", "ok", f"{len(names)} x {names[0]}")
    built = torch.version.cuda
    hint = "torch is built for CUDA but sees no GPU: check the driver" if built else ""
    return Check("devices", "note", f"no GPU; {core_count()} CPU cores", hint)


def precision() -> Check:
    import torch

    from pipeline.launch.topology import choose_precision

    chosen = choose_precision("auto", torch.cuda.is_available())
    why = "native on this device" if chosen == "bf16" else "bf16 is not native on this device"
    return Check("precision", "ok", f"auto = {chosen}: {why}")


def packages() -> Check:
    wanted = ("accelerate", "webdataset", "mlflow", "pyarrow", "fsspec", "s3fs", "deepspeed")
    installed, missing = [], []
    for name in wanted:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    hint = f"make install brings {', '.join(missing)}" if missing else ""
    state = "bad" if set(missing) - {"deepspeed"} else "ok"
    return Check("packages", state, ", ".join(installed), hint)


def disk() -> Check:
    free = shutil.disk_usage(".").free / 1e9
    try:
        with suppress(OSError), tempfile.TemporaryDirectory(dir=".") as folder:
            hold(Path(folder).absolute() / "lock", folder).close()
    except ConfigError as error:
        return Check("disk", "bad", str(error), "set root= or run= to another disk")
    hint = f"a run needs about {NEEDED_GB} GB: free some, or set root=" if free < NEEDED_GB else ""
    return Check("disk", "note" if hint else "ok", f"{free:.0f} GB free here", hint)


def cache() -> Check:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Check("cache", "ok", str(folder))
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a writable folder"
        return Check("cache", "bad", f"{folder}: {error.strerror}", hint)


def weights() -> Check:
    from pipeline.config.schema import TRAINING_WEIGHTS
    from pipeline.training.weights import cached

    missing = [name for name in TRAINING_WEIGHTS if not cached(name).exists()]
    if not missing:
        return Check("weights", "ok", f"{', '.join(TRAINING_WEIGHTS)} are cached")
    hint = f"python -m pipeline fetch {' '.join(missing)}, on a machine with a network"
    return Check("weights", "note", f"{', '.join(missing)} not cached (MUSICAL needs them)", hint)


def tracking() -> Check:
    """Create and delete a run: reading alone would not show a missing permission."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Check("mlflow", "ok", "sqlite next to the runs (MLFLOW_TRACKING_URI is not set)")
    from pipeline.common.environment import user
    from pipeline.tracking import errors
    from pipeline.tracking.client import connect, experiment_id, tracking_uri

    try:
        uri = tracking_uri()
        client = connect(uri)
        with errors.explained(uri):
            experiment = experiment_id(client, uri, f"{user()}/doctor")
            client.delete_run(client.create_run(experiment).info.run_id)
    except errors.ServerError as error:
        return Check("mlflow", "bad", str(error), "check MLFLOW_TRACKING_URI and its account")
    return Check("mlflow", "ok", f"{errors.display_uri(uri)} accepts a run")


def scheduler() -> Check:
    results, state = [], "note"
    for command, words in (("sbatch", ("--version",)), ("kubectl", ("version", "--client"))):
        if shutil.which(command):
            done = subprocess.run([command, *words], capture_output=True, text=True, timeout=30)
            text = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
            state = state if done.returncode else "ok"
            results.append(f"{command} fails: {text[-1]}" if done.returncode else text[0])
    hint = "" if state == "ok" else "submit can use cluster=local here"
    return Check("scheduler", state, ", ".join(results) or "neither sbatch nor kubectl", hint)


def secrets() -> Check:
    pairs = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    there = [name for name in pairs if os.environ.get(name)]
    profile = (Path.home() / ".aws" / "credentials").exists() or "AWS_PROFILE" in os.environ
    if len(there) == 2 or profile:
        return Check("secrets", "ok", "S3 credentials are present (their values are not shown)")
    if there:
        return Check("secrets", "bad", f"only {there[0]} is set", f"set both {' and '.join(pairs)}")
    return Check("secrets", "note", "no S3 credentials", "needed for s3:// only")


def storage(url: str) -> Check:
    from shards import store

    name, data, step = store.join(url, f"doctor-{uuid.uuid4().hex}"), uuid.uuid4().bytes, "put"
    try:
        store.write(name, data)
        step = "get"
        if store.read(name) != data:
            raise OSError("the bytes read differ from those written")
        step = "delete"
        store.remove(name)
    except (OSError, ValueError) as error:
        found = f"{step} in {store.display(url)}: {one_line(error)}"
        return Check("storage", "bad", found, "see README")
    return Check("storage", "ok", f"put, get and delete in {store.display(url)}")


def all_reduce() -> Check:
    """Run the collective that training depends on, between the workers of all nodes of this job."""
    from pipeline.launch.topology import place, visible_gpus
    from pipeline.launch.workers import supervise

    here = place(os.environ, max(1, visible_gpus()))
    command = [sys.executable, "-m", "pipeline", "doctor"]
    ended = supervise(command, here.workers, grace=here.grace)
    if ended.status:
        hint = "nodes must reach each other: see cluster.env for NCCL_SOCKET_IFNAME and the like"
        return Check("all-reduce", "bad", ended.error or f"exit status {ended.status}", hint)
    return Check("all-reduce", "ok", f"{here.nodes} nodes x {here.processes} processes agree")


def exchanged(megabytes: int = 64) -> Check:
    """Run this worker's part of it: sum one number of every rank, then time a large tensor."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=60))
    rank, count = dist.get_rank(), dist.get_world_size()
    try:
        number = torch.tensor([float(rank + 1)], device=device)
        dist.all_reduce(number)
        if number.item() != count * (count + 1) / 2:
            raise RuntimeError(f"the ranks of {count} sum to {number.item()}")
        large = torch.ones(megabytes * 2**18, device=device)
        began = time.perf_counter()
        dist.all_reduce(large)
        large[0].item()  # a GPU answers once it is done
        rate = megabytes / 1024 / (time.perf_counter() - began)
    finally:
        dist.destroy_process_group()
    where = f"rank {rank} of {count} on {platform.node()} ({device.type})"
    return Check("exchange", "ok", f"{where}: {megabytes} MB at {rate:.2f} GB/s")
