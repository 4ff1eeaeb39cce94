"""Job, cluster and status records shared by every scheduler.

The launch contract is the same for all. One launcher per node runs `python -m pipeline COMMAND …`
with `PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE PET_MASTER_ADDR PET_MASTER_PORT`; SIGTERM or
SIGUSR1 asks it to save and exit; the exit status decides whether the scheduler starts it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

SECRETS = (r"(?<![\w.-])[\w.-]*(?:SECRET|TOKEN(?!IZ)|PASSWO?R?D|(?<!APPLICATION_)CREDENTIAL|(?:API|"
           r"ACCESS|PRIVATE)[_-]?KEY)[\w.-]*(?<![_-]FILE)(?<![_-]PATH)(?<![_-]DIR)")  # fmt: skip
SECRET_NAME = re.compile(f"^{SECRETS}$", re.I)  # of a secret itself, not of a file that holds it


def key(
    default: Any,
    help: str,
    choices: tuple[Any, ...] = (),
    only: tuple[str, ...] = (),
    least: int | None = None,
    most: int | None = None,
) -> Any:
    """Return a field with its help, allowed values or range, and the schedulers that use it.

    `only` is empty for a field of every scheduler. The configuration checks choices and range.
    """
    metadata = {"help": help, "choices": choices, "only": only, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


SLURM, KUBERNETES, BOTH = ("slurm",), ("kubernetes",), ("slurm", "kubernetes")


@dataclass
class Cluster:
    """The group `cluster=`: scheduler, resources and environment of a job."""

    scheduler: str = key("local", "scheduler backend", ("local", "slurm", "kubernetes"))
    nodes: int = key(1, "number of nodes", least=1)
    gpus_per_node: int = key(0, "GPUs per node", least=0)
    processes_per_node: int | None = key(None, "workers per node; null: one per GPU", (), BOTH, 1)
    cpus_per_node: int | None = key(None, "CPU cores per node; null: site's default", (), BOTH, 1)
    memory_gb: int | None = key(None, "memory per node, GiB; null: site's default", (), BOTH, 1)
    name: str | None = key(None, "job name; null: the name of the run", (), BOTH)
    tasks: int | None = key(None, "number of array elements (`shard`)", least=1)
    throttle: int | None = key(None, "array elements that run at once; null: all", (), BOTH, 1)
    retries: int = key(3, "restarts after a crash, not counting saved stops", least=0)
    lead_seconds: int = key(
        180, "grace period in seconds from the stop signal to the kill", (), BOTH, 1)  # fmt: skip
    env: dict[str, str] = key({}, "environment variables of the job; no secrets")
    python: str | None = key(None, "interpreter; null: the submitter's, or the image's")
    code: str = key("snapshot", "`git archive` of the commit, or the code in the image",
                    ("snapshot", "image"))  # fmt: skip
    allow_dirty: bool = key(False, "include uncommitted changes, recorded as a diff")
    folder: str | None = key(
        None, "shared folder for script, logs and code; null: the run's, runs/ for a bucket", (),
        ("local", "slurm"))  # fmt: skip
    image: str | None = key(None, "container image, by digest", (), BOTH)
    commands: dict[str, Any] = key(
        {}, "other settings of single commands: {shard: {partition: cpu}}", (), BOTH
    )
    port: int = key(29500, "rendezvous port on node 0", (), KUBERNETES, 1024, 65535)

    partition: str | None = key(None, "partition (queue)", (), SLURM)
    account: str | None = key(None, "account to charge (sbatch --account)", (), SLURM)
    qos: str | None = key(None, "quality of service", (), SLURM)
    time: str | None = key(None, "wall limit of one attempt, D-HH:MM:SS", (), SLURM)
    sbatch: dict[str, Any] = key({}, "more sbatch options: {constraint: a100}", (), SLURM)
    setup: list[str] = key([], "shell lines before the job: module load, source", (), SLURM)
    container: str = key("none", "container runtime", ("none", "pyxis", "apptainer"), SLURM)
    mounts: list[str] = key([], "HOST:CONTAINER folders to mount", (), SLURM)
    secrets_file: str | None = key(
        None, "NAME=value lines, mode 0600; null: ~/.config/lacuna/secrets.env if it exists", (),
        ("local", "slurm"))  # fmt: skip

    kind: str = key("job", "Indexed Job, or JobSet (chains)", ("job", "jobset"), KUBERNETES)
    namespace: str | None = key(None, "namespace; null: the context's", (), KUBERNETES)
    context: str | None = key(None, "kubeconfig context; null: the current one", (), KUBERNETES)
    queue: str | None = key(None, "Kueue LocalQueue", (), KUBERNETES)
    secrets: list[str] = key([], "Secrets to load as environment variables", (), KUBERNETES)
    pull_secrets: list[str] = key([], "Secrets of the image registry", (), KUBERNETES)
    volumes: dict[str, str] = key({}, "mounted claims: {CLAIM: /path}", (), KUBERNETES)
    node_selector: dict[str, str] = key({}, "required node labels", (), KUBERNETES)
    tolerations: list[Any] = key([], "taints to tolerate", (), KUBERNETES)
    service_account: str | None = key(
        None, "service account of the pods; null: the default", (), KUBERNETES
    )
    priority_class: str | None = key(
        None, "priority class of the pods; null: the default", (), KUBERNETES
    )
    gpu_resource: str = key("nvidia.com/gpu", "name of the accelerator resource", (), KUBERNETES)
    shm_gb: int = key(8, "shared memory, GiB; part of memory_gb", (), KUBERNETES, 1)
    scratch_gb: int = key(20, "limit of /scratch, logs included, GiB", (), KUBERNETES, 1)
    ttl_hours: int = key(72, "hours until a finished Job is removed", (), KUBERNETES, 0)
    patch: dict[str, Any] = key({}, "patch for the pod template, merged last", (), KUBERNETES)

    @property
    def processes(self) -> int:
        return self.processes_per_node or self.gpus_per_node or 1


@dataclass(frozen=True)
class Job:
    """One command to run.

    run: folder or URL of the results. folder: of script, logs and code (the same as `run`, unless
    that is in a bucket). cwd: base of relative paths, where machines share a disk.
    code: folder of the unpacked commit; on Kubernetes the URL of its archive, with its SHA-256.
    elements: of an array, the arguments that differ between its elements.
    after: IDs of jobs that must succeed first (local: their state files).
    reads, writes: absolute folders on a disk that a container must mount.
    part: prefix of the pod names where an array element is a Job of its own.
    """

    id: str
    verb: str
    arguments: tuple[str, ...]
    run: str
    folder: str
    cwd: str = "/"
    code: str | None = None
    code_sha256: str = ""
    commit: str | None = None
    elements: tuple[tuple[str, ...], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    part: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def command(self, python: str) -> tuple[str, ...]:
        return (python, "-m", "pipeline", self.verb, *self.arguments)


class JobState(StrEnum):
    """State of a job. INTERRUPTED: saved and stopped, and not restarted automatically."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    INTERRUPTED = "INTERRUPTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def live(self) -> bool:
        return self in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Status:
    """State of a submitted job; `reason` is why it waits or why it ended."""

    state: JobState
    reason: str = ""
    restarts: int = 0
    elements: Mapping[str, JobState] = field(default_factory=dict)

    def line(self) -> str:
        """Format as one line: `RUNNING · 2 restarts · on n1,n2`."""
        counted = {s: sum(e is s for e in self.elements.values()) for s in JobState}
        parts = [
            self.state.value,
            ", ".join(f"{n} {s.value.lower()}" for s, n in counted.items() if n),
            f"{self.restarts} restart{'s' * (self.restarts != 1)}" if self.restarts else "",
            self.reason,
        ]
        return " · ".join(p for p in parts if p)


def summary(elements: Mapping[str, JobState]) -> JobState:
    """Return the state of an array: live states first, then failures."""
    order = (JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED,
             JobState.INTERRUPTED, JobState.UNKNOWN, JobState.SUCCEEDED)  # fmt: skip
    return next((s for s in order if s in elements.values()), JobState.UNKNOWN)


def numbers(text: str) -> list[str]:
    """Expand an element list as schedulers write it: `3`, `0-2`, `0-8:2`, `4,6-7%2`."""
    expanded: list[str] = []
    for part in filter(None, text.split("%")[0].split(",")):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        expanded += [str(n) for n in range(int(first), int(last or first) + 1, int(step or 1))]
    return expanded


def explained(code: int) -> str:
    """Describe an exit status of the launcher or of a shell."""
    if code > 128:
        names = {2: "interrupted", 9: "killed (memory limit, or after the grace period)",
                 15: "terminated", 6: "aborted", 7: "bus error (shared memory full?)",
                 11: "segmentation fault"}  # fmt: skip
        return f"exit {code}: {names.get(code - 128, f'signal {code - 128}')}"
    known = {os.EX_OK: "done", os.EX_TEMPFAIL: "saved, to be continued",
             os.EX_CONFIG: "configuration error, not retried"}  # fmt: skip
    return f"exit {code}: {known.get(code, 'failed')}"


class SubmitError(ValueError):
    """An invalid job, or a refusal of the scheduler: one line, with the fix."""


class SubmissionUnconfirmed(SubmitError):
    """The scheduler's answer was lost: it may have accepted the job."""


def check(job: Job, cluster: Cluster) -> None:
    """Refuse a job that no scheduler could run; called by each renderer."""
    for known in fields(cluster):
        value = getattr(cluster, known.name)
        for text in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            one_line(f"cluster.{known.name}", text)
    if cluster.throttle and not job.elements:
        raise SubmitError(
            f"cluster.throttle={cluster.throttle} applies only to arrays: set cluster.tasks= "
            "(`shard`) or give several values (a sweep), or leave it out"
        )
    for name, value in {**cluster.env, **job.env}.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SubmitError(
                f"cluster.env: invalid variable name {name!r}: use letters, digits and _"
            )
        if name in cluster.env and name.startswith("PET_"):
            raise SubmitError(
                f"cluster.env.{name} is set by `submit`: use cluster.nodes= and "
                "cluster.processes_per_node= instead"
            )
        if name in cluster.env and SECRET_NAME.search(name):
            raise SubmitError(
                f"cluster.env.{name} looks like a secret: put it into cluster.secrets_file (SLURM) "
                "or a Secret named in cluster.secrets (Kubernetes)"
            )
        one_line(f"cluster.env.{name}", value)
    for argument in (job.id, job.run, job.folder, job.cwd, *job.arguments, *sum(job.elements, ())):
        one_line("an argument", argument)
    for name in job.folder.split("/") if "://" not in job.folder else ():
        if len(os.fsencode(name)) > 255:
            raise SubmitError(
                f"the folder name {name[:20]}… has {len(os.fsencode(name))} bytes, at most 255 are "
                "allowed: give a shorter run= or root="
            )


def is_tag(image: str) -> bool:
    """Return whether a registry image is named by tag; a path or a digest cannot change."""
    return "@sha256:" not in image and not image.startswith(("/", "."))


def refuse_tag(cluster: Cluster) -> None:
    """Refuse an image by tag where the job's code comes from the image."""
    if cluster.code == "image" and is_tag(cluster.image or "") and not cluster.allow_dirty:
        raise SubmitError(
            f"cluster.image={cluster.image} is a tag, which can change: give NAME@sha256:DIGEST, "
            "or accept the tag with cluster.allow_dirty=true"
        )


def private_file(path: str) -> str:
    """Return the absolute path of a secrets file that only its owner can read."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise SubmitError(f"cluster.secrets_file={path}: {error.strerror}") from None
    if mode & 0o077:
        raise SubmitError(
            f"cluster.secrets_file={path} is readable by other users: run chmod 600 {path}"
        )
    return os.path.abspath(path)


def one_line(what: str, value: Any) -> str:
    """Return the value as text; a line break in it would add a line to the script."""
    text = str(value)
    if re.search(r"[\n\r\0]", text):
        raise SubmitError(f"{what} contains a line break: {text!r}; remove it")
    return text
