"""SLURM: a job as an sbatch script, and what sbatch, scontrol, sacct and scancel say of it.

Rendering is pure. What became of a job is `slurm_status`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.slurm_refusals import reason, refused
from jobs.spec import Cluster, Job, SubmitError, Unheard, call, check, last_line, one_line
from jobs.text import rendered

OURS = {"array", "chdir", "dependency", "error", "export", "job-name", "kill-on-invalid-dep",
        "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable",
        "requeue", "signal", "test-only", "wait", "wrap"}  # fmt: skip
LEAST_WORK = 30  # seconds of an attempt before it is warned

# TORCH_FR_*: when a rank hangs, the flight recorder writes each one's last collectives to the logs.
ENVIRONMENT = {
    "NCCL_DEBUG": "WARN",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_FR_BUFFER_SIZE": "20000",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def render(job: Job, cluster: Cluster) -> str:
    """The whole sbatch script. Raises `SubmitError` for what no script can say."""
    check(job, cluster)
    if cluster.container != "none" and not cluster.image:
        raise SubmitError(f"cluster.container={cluster.container} needs cluster.image=")
    if cluster.image and cluster.container == "none":
        raise SubmitError("cluster.image needs cluster.container=pyxis or apptainer")
    if cluster.mounts and cluster.container == "none":
        raise SubmitError("cluster.mounts mean nothing without cluster.container=")
    if (cluster.container == "pyxis" and cluster.code == "image" and not cluster.allow_dirty
            and "@sha256:" not in str(cluster.image) and str(cluster.image)[0] != "/"):  # fmt: skip
        raise SubmitError(
            f"cluster.image={cluster.image} is a tag, which may be another image tomorrow: give "
            "NAME@sha256:DIGEST, or accept it with cluster.allow_dirty=true"
        )
    if cluster.container == "apptainer" and cluster.code == "image":
        raise SubmitError(
            "apptainer does not enter an image's own folder: set cluster.code=snapshot"
        )
    logs = f"{job.folder}/logs"
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
        title=f"{job.id}: {job.verb}, results in {job.run}"
        + (f", commit {job.commit}" if job.commit else ""),
        setup=[one_line("cluster.setup", line) for line in cluster.setup],
        secrets_file=cluster.secrets_file,
        logs=logs,
        env=environment,
        cwd=job.cwd,
        code=job.code if cluster.code == "snapshot" else None,
        elements=job.elements,
        retries=cluster.retries,
        srun=_srun(job, cluster),
        prefix=_container(job, cluster),
        program=interpreter(cluster),
        command=job.command(interpreter(cluster)),
    )


def seconds(limit: str) -> int | None:
    """A wall limit as sbatch reads it; None where there is none, or sbatch will not take it."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", limit.strip())
    if not found:
        return None
    parts = [int(part) for part in found[2].split(":")]
    if found[1] is None and len(parts) < 3:  # minutes, or minutes:seconds
        parts.insert(0, 0)
    hours, minutes, rest = [*parts, 0, 0][:3]
    return int(found[1] or 0) * 86400 + hours * 3600 + minutes * 60 + rest or None


def interpreter(cluster: Cluster) -> str:
    """The submitter's own Python unless another, or a container's, is asked for."""
    import sys

    return cluster.python or ("python" if cluster.container != "none" else sys.executable)


def _directives(job: Job, cluster: Cluster, logs: str) -> list[str]:
    if "\\" in logs:
        raise SubmitError(
            f"{job.folder} holds a backslash, which sbatch takes out of the names of its files: "
            "give another run= or cluster.folder="
        )
    escaped = logs.replace("%", "%%")  # % starts a pattern in sbatch's file names
    array = None
    if job.elements:
        array = f"0-{len(job.elements) - 1}"
        array += f"%{cluster.throttle}" if cluster.throttle else ""
    gpus = cluster.gpus_per_node and not {"gres", "gpus", "gpus-per-node"} & set(cluster.sbatch)
    options: dict[str, Any] = {
        "job-name": cluster.name or job.id,
        "comment": job.run,
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
    for name, value in cluster.sbatch.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise SubmitError(f"cluster.sbatch: {name!r} is no long option of sbatch")
        if meant := sorted(own for own in OURS if own.startswith(name)):  # sbatch takes beginnings
            whole = name if name in OURS else f"{name} (--{meant[0]})"
            raise SubmitError(f"cluster.sbatch.{whole} is set by `submit` itself: leave it out")
        if "clusters".startswith(name):
            raise SubmitError(
                f"cluster.sbatch.{name}: jobs go to the cluster of this machine's SLURM, which "
                "`status` and `cancel` ask; submit from a login node of the other"
            )
        options[name] = True if value is None else value
    for name in ("time", "time-min"):
        limit = seconds(str(options.get(name) or ""))
        if limit is not None and limit < cluster.lead_seconds + LEAST_WORK:
            raise SubmitError(
                f"the wall limit {name}={options[name]} is {limit} s, and the job is warned "
                f"cluster.lead_seconds={cluster.lead_seconds} before it: leave {LEAST_WORK} s at "
                "least between start and warning, or it is requeued for ever"
            )
    lines = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        text = one_line(f"sbatch's --{name}", value)
        lines.append(f"--{name}" if value is True else f"--{name}={shlex.quote(text)}")
    return lines


def _srun(job: Job, cluster: Cluster) -> list[str]:
    # --kill-on-bad-exit=0 and --wait: the first launcher to leave must not cut the others' save.
    words = [f"--nodes={cluster.nodes}", "--ntasks-per-node=1", "--export=ALL", "--label",
             "--kill-on-bad-exit=0", f"--wait={cluster.lead_seconds}"]  # fmt: skip
    if cluster.cpus_per_node:
        words.append(f"--cpus-per-task={cluster.cpus_per_node}")
    if cluster.container == "pyxis":
        words.append(f"--container-image={one_line('cluster.image', cluster.image)}")
        if mounts := _mounts(job, cluster):
            words.append(f"--container-mounts={','.join(mounts)}")
        if cluster.code == "snapshot":
            words.append(f"--container-workdir={job.cwd}")
    return words


def _container(job: Job, cluster: Cluster) -> list[str]:
    if cluster.container != "apptainer":
        return []
    words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else [])]
    for mount in _mounts(job, cluster):
        words += ["--bind", mount]
    words += ["--pwd", job.cwd]
    return [*words, one_line("cluster.image", cluster.image)]


def _mounts(job: Job, cluster: Cluster) -> list[str]:
    """Every folder that the job reads or writes, at its own path, and the site's own."""
    ours = {job.folder, *job.writes, *job.reads, *([job.cwd] if cluster.code == "snapshot" else [])}
    outer = sorted(p for p in ours if not any(p.startswith(f"{q.rstrip('/')}/") for q in ours))
    for path in outer:
        if re.search("[:,]", path):
            raise SubmitError(f"{path} holds a colon or a comma, which no container can mount")
    return [one_line("cluster.mounts", m) for m in (*(f"{p}:{p}" for p in outer), *cluster.mounts)]


def submit(job: Job, cluster: Cluster) -> str:
    """Hands the script to sbatch, leaves it in the folder, and returns SLURM's job id."""
    script = render(job, cluster)
    folder = Path(job.folder)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "job.sbatch").write_text(script)
    for place in job.writes if cluster.container != "none" else ():
        Path(place).mkdir(parents=True, exist_ok=True)  # a container is given folders that exist
    answer = call(["sbatch", "--parsable"], stdin=script, apart=True)
    number = answer.stdout.strip().split(";")[0]
    if answer.returncode > 0 and refused(answer.stderr):
        raise SubmitError(f"sbatch refuses: {reason(answer.stderr)}")
    if answer.returncode or not number.isdigit():
        raise Unheard(f"sbatch: {reason(answer.stderr) or f'exit {answer.returncode}'}")
    keep_notes(job, number)
    return number


def keep_notes(job: Job, number: str) -> None:
    """A first note of each part of a job that SLURM has."""
    folder = Path(job.folder)
    for name in [f"{number}_{i}" for i in range(len(job.elements))] or [number]:
        with (
            contextlib.suppress(OSError),  # SLURM has it: no error may come after
            open(folder / "logs" / f"state-{name}", "x") as f,
        ):
            f.write("QUEUED\n")  # until its script says more; what never ran is not forgotten


def judge(job: Job, cluster: Cluster) -> str:
    """What sbatch says to the job without taking it. Raises `SubmitError` if it would refuse."""
    answer = call(["sbatch", "--test-only"], stdin=render(replace(job, after=()), cluster))
    if answer.returncode:
        raise SubmitError(f"sbatch refuses: {reason(answer.stderr)}")
    return last_line(answer.stderr).removeprefix("sbatch: ")


def ask(job: Job, cluster: Cluster) -> list[str]:
    """Asks sbatch whether the job could run, and one node whether it has the interpreter."""
    return [judge(job, cluster), _ask_node(job, cluster)]


def _ask_node(job: Job, cluster: Cluster) -> str:
    probe = "import sys, torch, mlflow; print(sys.version.split()[0], torch.__version__)"
    words = [interpreter(cluster), "-c", probe]
    where = ["--nodes=1", "--ntasks=1", "--time=5", "--immediate=30", "--quiet", "--export=NONE"]
    for name in ("partition", "account", "qos"):
        if getattr(cluster, name):
            where.append(f"--{name}={getattr(cluster, name)}")
    for name in {"constraint", "reservation"} & set(cluster.sbatch):
        where.append(f"--{name}={cluster.sbatch[name]}")
    container = [w for w in _srun(job, cluster) if w.startswith("--container-image")]
    lines = [
        *cluster.setup,
        shlex.join([*_container(job, replace(cluster, gpus_per_node=0)), *words]),
    ]
    answer = call(["srun", *where, *container, "/bin/bash", "-c", "\n".join(lines)], timeout=300)
    if answer.returncode == 0:
        return f"a node has Python and torch {last_line(answer.stdout)} at {words[0]}"
    if "mmediate" in answer.stderr or "busy" in answer.stderr:
        return "no node was free within 30 s: the interpreter there was not verified"
    # What one core for five minutes may not have, the job may: it was judged already.
    if "allocate resources" in answer.stderr:
        return f"the interpreter was not verified, SLURM gave no node: {last_line(answer.stderr)}"
    raise SubmitError(
        f"a node cannot run {words[0]}: {last_line(answer.stderr)}; set cluster.python, "
        "cluster.setup or cluster.container so that it finds this project's packages"
    )


def cancel(number: str) -> None:
    """Asks SLURM to end it: tasks get SIGTERM at once, save, and are killed after KillWait."""
    answer = call(["scancel", number])
    if answer.returncode:
        raise SubmitError(f"scancel: {last_line(answer.stderr)}")
