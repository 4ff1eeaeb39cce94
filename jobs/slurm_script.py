"""Render a job as an sbatch script: a pure function."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

from jobs.spec import Cluster, Job, SubmitError, check, one_line, refuse_tag
from jobs.text import rendered

# Options of sbatch that `submit` sets.
RESERVED = {"array", "chdir", "dependency", "error", "export", "job-name", "kill-on-invalid-dep",
        "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable",
        "requeue", "signal", "test-only", "wait", "wrap"}  # fmt: skip
MIN_WORK = 30  # seconds between an attempt's start and its stop signal

# TORCH_FR_*: if a rank hangs, the flight recorder writes each rank's last collectives to the logs.
ENVIRONMENT = {
    "NCCL_DEBUG": "WARN",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_FR_BUFFER_SIZE": "20000",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def render(job: Job, cluster: Cluster) -> str:
    """Return the sbatch script. Raises `SubmitError` for invalid options."""
    check(job, cluster)
    if cluster.container != "none" and not cluster.image:
        raise SubmitError(f"cluster.container={cluster.container} needs cluster.image=")
    if cluster.container == "none" and (cluster.image or cluster.mounts):
        name = "image" if cluster.image else "mounts"
        raise SubmitError(f"cluster.{name}= needs cluster.container=pyxis or apptainer")
    if cluster.container == "pyxis":
        refuse_tag(cluster)
    if cluster.container == "apptainer" and cluster.code == "image":
        raise SubmitError(
            "cluster.code=image does not work with apptainer, which does not enter the image's "
            "working folder: set cluster.code=snapshot"
        )
    logs = f"{job.folder}/logs"
    commit = f", commit {job.commit}" if job.commit else ""
    environment = {
        **ENVIRONMENT,
        "PET_NNODES": str(cluster.nodes),
        "PET_NPROC_PER_NODE": str(cluster.processes),
        "PET_SHUTDOWN_TIMEOUT": str(cluster.lead_seconds),
        **cluster.env,
        **job.env,
    }
    return rendered(
        "job.sbatch.j2",
        directives=_directives(job, cluster, logs),
        title=f"{job.id}: {job.verb}, results in {job.run}{commit}",
        setup=[one_line("cluster.setup", line) for line in cluster.setup],
        secrets_file=cluster.secrets_file,
        logs=logs,
        env=environment,
        cwd=job.cwd,
        code=job.code if cluster.code == "snapshot" else None,
        elements=job.elements,
        retries=cluster.retries,
        srun=srun(job, cluster),
        prefix=container(job, cluster),
        program=interpreter(cluster),
        command=job.command(interpreter(cluster)),
    )


def seconds(limit: str) -> int | None:
    """Parse a wall limit as sbatch does, in seconds; None if there is no valid one."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", limit.strip())
    if not match:
        return None
    parts = [int(part) for part in match[2].split(":")]
    if match[1] is None and len(parts) < 3:  # minutes, or minutes:seconds
        parts.insert(0, 0)
    hours, minutes, rest = [*parts, 0, 0][:3]
    return int(match[1] or 0) * 86400 + hours * 3600 + minutes * 60 + rest or None


def interpreter(cluster: Cluster) -> str:
    """Return the Python of the nodes: cluster.python, the container's, or the submitter's."""
    return cluster.python or ("python" if cluster.container != "none" else sys.executable)


def placeholder(previous: Job) -> str:
    """Return the name that a rendered script holds in place of the previous stage's ID."""
    return previous.id


def with_dependency(script: str, previous: Job, number: str) -> str:
    """Replace the placeholder of the previous stage by its ID."""
    waits, known = _dependency((placeholder(previous),)), _dependency((number,))
    return script.replace(f"#SBATCH --{waits}\n", f"#SBATCH --{known}\n", 1)


def _dependency(ids: tuple[str, ...]) -> str:
    return f"dependency={shlex.quote('afterok:' + ':'.join(ids))}"


def _directives(job: Job, cluster: Cluster, logs: str) -> list[str]:
    """Return the options of the script's #SBATCH lines."""
    if "\\" in logs:
        raise SubmitError(
            f"{job.folder} contains a backslash, which sbatch removes from file names: give "
            "another run= or cluster.folder="
        )
    # --- options that `submit` sets from the job and the cluster's own keys
    escaped = logs.replace("%", "%%")  # % starts a pattern in sbatch's file names
    array = None
    if job.elements:
        array = f"0-{len(job.elements) - 1}"
        array += f"%{cluster.throttle}" if cluster.throttle else ""
    gpus = cluster.gpus_per_node and not {"gres", "gpus", "gpus-per-node"} & set(cluster.sbatch)
    options: dict[str, Any] = {
        "job-name": cluster.name or job.id,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.gpus_per_node if gpus else None,
        "cpus-per-task": cluster.cpus_per_node,
        "mem": f"{cluster.memory_gb}G" if cluster.memory_gb else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "output": f"{escaped}/slurm-{'%A_%a' if array else '%j'}.out",
        "open-mode": "append",
        "signal": f"B:USR1@{cluster.lead_seconds}",
        "requeue": True,
        "export": "NONE",
        "array": array,
        "dependency": f"afterok:{':'.join(job.after)}" if job.after else None,
        "kill-on-invalid-dep": "yes" if job.after else None,
    }
    # --- the site's options; sbatch accepts any unambiguous beginning of an option's name
    for name, value in cluster.sbatch.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise SubmitError(
                f"cluster.sbatch: invalid option {name!r}: give a long option of sbatch without --"
            )
        if reserved := sorted(own for own in RESERVED if own.startswith(name)):
            whole = name if name in RESERVED else f"{name} (--{reserved[0]})"
            raise SubmitError(f"cluster.sbatch.{whole} is set by `submit` itself: leave it out")
        if "clusters".startswith(name):
            raise SubmitError(
                f"cluster.sbatch.{name}: `status` and `cancel` query only this machine's SLURM "
                "cluster; submit from a login node of the other cluster"
            )
        options[name] = True if value is None else value
    # --- a job that gets the stop signal at its start would be requeued forever
    for name in ("time", "time-min"):
        limit = seconds(str(options.get(name) or ""))
        if limit is not None and limit < cluster.lead_seconds + MIN_WORK:
            raise SubmitError(
                f"the wall limit {name}={options[name]} is {limit} s, and the stop signal comes "
                f"cluster.lead_seconds={cluster.lead_seconds} s before it: at least {MIN_WORK} s "
                "must remain, or the job is requeued forever; raise the limit"
            )
    lines = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        text = one_line(f"sbatch's --{name}", value)
        lines.append(f"--{name}" if value is True else f"--{name}={shlex.quote(text)}")
    return lines


def srun(job: Job, cluster: Cluster) -> list[str]:
    """Return the options of srun, which starts one launcher per node."""
    # --kill-on-bad-exit=0, --wait: the others can save after the first launcher has exited.
    options = [f"--nodes={cluster.nodes}", "--ntasks-per-node=1", "--export=ALL", "--label",
             "--kill-on-bad-exit=0", f"--wait={cluster.lead_seconds}"]  # fmt: skip
    if cluster.cpus_per_node:
        options.append(f"--cpus-per-task={cluster.cpus_per_node}")
    if cluster.container == "pyxis":
        options.append(f"--container-image={one_line('cluster.image', cluster.image)}")
        if mounts := _mounts(job, cluster):
            options.append(f"--container-mounts={','.join(mounts)}")
        if cluster.code == "snapshot":
            options.append(f"--container-workdir={job.cwd}")
    return options


def container(job: Job, cluster: Cluster) -> list[str]:
    """Return the command that runs another one in the container; empty for pyxis and none."""
    if cluster.container != "apptainer":
        return []
    command = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else [])]
    for mount in _mounts(job, cluster):
        command += ["--bind", mount]
    command += ["--pwd", job.cwd]
    return [*command, one_line("cluster.image", cluster.image)]


def _mounts(job: Job, cluster: Cluster) -> list[str]:
    """Return the mounts: each folder that the job reads or writes, then cluster.mounts."""
    needed = {
        job.folder,
        *job.writes,
        *job.reads,
        *([job.cwd] if cluster.code == "snapshot" else []),
    }
    outer = sorted(p for p in needed if not any(p.startswith(f"{q.rstrip('/')}/") for q in needed))
    for path in outer:
        if re.search("[:,]", path):
            raise SubmitError(
                f"{path} contains a colon or comma and cannot be mounted: rename the folder"
            )
    return [one_line("cluster.mounts", m) for m in (*(f"{p}:{p}" for p in outer), *cluster.mounts)]
