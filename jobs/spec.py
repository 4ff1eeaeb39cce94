"""What is to run, on which machines, and what became of it: records shared by every scheduler.

The launch contract is the same everywhere. One launcher a node runs `python -m pipeline VERB …`
with `PET_NNODES PET_NODE_RANK PET_NPROC_PER_NODE PET_MASTER_ADDR PET_MASTER_PORT`; SIGTERM or
SIGUSR1 asks it to save and leave; its exit status says what to do next.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

DONE, FAILED, SAVED, CONFIGURATION = 0, 1, 75, 78
SECRETS = (r"(?<![\w.-])[\w.-]*(?:SECRET|TOKEN(?!IZ)|PASSWO?R?D|(?<!APPLICATION_)CREDENTIAL|(?:API|"
           r"ACCESS|PRIVATE)[_-]?KEY)[\w.-]*(?<![_-]FILE)(?<![_-]PATH)(?<![_-]DIR)")  # fmt: skip
SECRET_NAME = re.compile(f"^{SECRETS}$", re.I)  # of a secret itself, not of a file that holds it


def key(default: Any, help: str, choices: tuple[Any, ...] = (), only: tuple[str, ...] = ()) -> Any:
    """A field with its meaning, its allowed values, the schedulers that know it (empty: all)."""
    metadata = {"help": help, "choices": choices, "only": only}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


LEAST = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1, "cpus_per_node": 1,
         "memory_gb": 1, "tasks": 1, "throttle": 1, "retries": 0, "lead_seconds": 1, "port": 1024,
         "shm_gb": 1, "ttl_hours": 0}  # fmt: skip
SLURM, KUBERNETES, BOTH = ("slurm",), ("kubernetes",), ("slurm", "kubernetes")


@dataclass
class Cluster:
    """The group `cluster=`: where a job runs and what it gets there."""

    scheduler: str = key("local", "who runs it", ("local", "slurm", "kubernetes"))
    nodes: int = key(1, "machines")
    gpus_per_node: int = key(0, "accelerators on each")
    processes_per_node: int | None = key(None, "workers on each; null: one a GPU, else 1", (), BOTH)
    cpus_per_node: int | None = key(None, "CPU cores on each; null: the site's default", (), BOTH)
    memory_gb: int | None = key(None, "memory on each, GiB; null: the site's default", (), BOTH)
    name: str | None = key(None, "the job's name; null: the run's", (), BOTH)
    tasks: int | None = key(None, "elements of an array (`shard`)")
    throttle: int | None = key(None, "elements of an array that run at a time; null: all", (), BOTH)
    retries: int = key(3, "restarts after a crash; stops that saved everything are not counted")
    lead_seconds: int = key(180, "time to save between the warning and the end", (), BOTH)
    env: dict[str, str] = key({}, "environment of the job; secrets do not belong here")
    python: str | None = key(None, "interpreter; null: the submitter's, or the image's")
    code: str = key("snapshot", "`git archive` of the commit, or what the image holds",
                    ("snapshot", "image"))  # fmt: skip
    allow_dirty: bool = key(False, "take uncommitted changes along, recorded as a diff")
    folder: str | None = key(
        None, "shared folder for script, logs and code; null: the run's, runs/ for a bucket", (),
        ("local", "slurm"))  # fmt: skip
    image: str | None = key(None, "container image, by digest", (), BOTH)
    port: int = key(29500, "where worker 0 listens", (), KUBERNETES)

    partition: str | None = key(None, "queue", (), SLURM)
    account: str | None = key(None, "who pays", (), SLURM)
    qos: str | None = key(None, "quality of service", (), SLURM)
    time: str | None = key(None, "wall limit of one attempt, D-HH:MM:SS", (), SLURM)
    sbatch: dict[str, Any] = key({}, "further options of sbatch: {constraint: a100}", (), SLURM)
    setup: list[str] = key([], "shell lines before the job: module load, source", (), SLURM)
    container: str = key("none", "how the image is entered", ("none", "pyxis", "apptainer"), SLURM)
    mounts: list[str] = key([], "HOST:CONTAINER folders of the container", (), SLURM)
    secrets_file: str | None = key(
        None, "NAME=value lines, mode 0600; null: ~/.config/lacuna/secrets.env if it exists", (),
        ("local", "slurm"))  # fmt: skip

    kind: str = key("job", "Indexed Job, or JobSet (gangs, chains)", ("job", "jobset"), KUBERNETES)
    namespace: str | None = key(None, "null: the context's", (), KUBERNETES)
    context: str | None = key(None, "of the kubeconfig; null: the current one", (), KUBERNETES)
    queue: str | None = key(None, "Kueue LocalQueue", (), KUBERNETES)
    secrets: list[str] = key([], "Secrets whose keys become environment", (), KUBERNETES)
    pull_secrets: list[str] = key([], "Secrets of the image registry", (), KUBERNETES)
    volumes: dict[str, str] = key({}, "claim: path where it is mounted", (), KUBERNETES)
    node_selector: dict[str, str] = key({}, "labels of the nodes", (), KUBERNETES)
    tolerations: list[Any] = key([], "taints that are tolerated", (), KUBERNETES)
    service_account: str | None = key(None, "null: the namespace's default", (), KUBERNETES)
    priority_class: str | None = key(None, "null: the cluster's default", (), KUBERNETES)
    gpu_resource: str = key("nvidia.com/gpu", "name of the accelerator resource", (), KUBERNETES)
    shm_gb: int = key(8, "shared memory, GiB; counts against memory_gb", (), KUBERNETES)
    ttl_hours: int = key(72, "a finished Job is removed after this long", (), KUBERNETES)
    patch: dict[str, Any] = key({}, "merged last into the pod template", (), KUBERNETES)

    @property
    def processes(self) -> int:
        return self.processes_per_node or self.gpus_per_node or 1


@dataclass(frozen=True)
class Job:
    """One thing to run. `elements` are the arguments that differ between elements of an array.

    run: where results go. folder: where script, logs and code lie (the same, unless the run is a
    bucket). cwd: what relative paths are relative to, where machines share a disk.
    code: folder of the unpacked commit; on Kubernetes URL and sha256 of its archive.
    after: scheduler's ids of the jobs that must have succeeded before.
    reads, writes: folders on a disk, absolute, which a container must be given.
    part: of an element that has become a job of its own, what its pods' names begin with.
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
    """INTERRUPTED: stopped with everything saved, and nobody will start it again unasked."""

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
    """What a scheduler says of a job, in our words; `reason` is why it waits or what ended it."""

    state: JobState
    reason: str = ""
    restarts: int = 0
    elements: Mapping[str, JobState] = field(default_factory=dict)

    def line(self) -> str:
        """`RUNNING · 2 restarts · on n1,n2`: everything known, in one line."""
        counted = {s: sum(e is s for e in self.elements.values()) for s in JobState}
        parts = [
            self.state.value,
            ", ".join(f"{n} {s.value.lower()}" for s, n in counted.items() if n),
            f"{self.restarts} restart{'s' * (self.restarts != 1)}" if self.restarts else "",
            self.reason,
        ]
        return " · ".join(p for p in parts if p)


def summary(elements: Mapping[str, JobState]) -> JobState:
    """The state of an array: the first of what still moves, then of what went wrong."""
    order = (JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED,
             JobState.INTERRUPTED, JobState.UNKNOWN, JobState.SUCCEEDED)  # fmt: skip
    return next((s for s in order if s in elements.values()), JobState.UNKNOWN)


def numbers(text: str) -> list[str]:
    """`3`, `0-2`, `0-8:2`, `4,6-7%2`: how schedulers write several elements, one by one."""
    found: list[str] = []
    for part in filter(None, text.split("%")[0].split(",")):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found += [str(n) for n in range(int(first), int(last or first) + 1, int(step or 1))]
    return found


def explained(code: int) -> str:
    """What an exit status of the launcher, or of a shell, means."""
    if code > 128:
        names = {2: "interrupted", 9: "killed (memory limit, or after the grace period)",
                 15: "terminated", 6: "aborted", 7: "bus error (shared memory full?)",
                 11: "segmentation fault"}  # fmt: skip
        return f"exit {code}: {names.get(code - 128, f'signal {code - 128}')}"
    known = {DONE: "done", FAILED: "failed", SAVED: "saved, to be continued",
             CONFIGURATION: "configuration error, not retried"}  # fmt: skip
    return f"exit {code}: {known.get(code, 'failed')}"


class SubmitError(ValueError):
    """A job that cannot be submitted, or a scheduler that refused it: one line, with the mend."""


class Unheard(SubmitError):
    """A scheduler whose answer was lost: it may have taken what it was handed."""


def check(job: Job, cluster: Cluster) -> None:
    """Refuses what no scheduler could run; called before anything is rendered."""
    check_least(cluster)
    for known in fields(cluster):
        value = getattr(cluster, known.name)
        for text in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            one_line(f"cluster.{known.name}", text)
    if cluster.throttle and not job.elements:
        raise SubmitError(
            f"cluster.throttle={cluster.throttle} means nothing without an array: give "
            "cluster.tasks= (`shard`), several values (a sweep), or leave it out"
        )
    for name, value in {**cluster.env, **job.env}.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SubmitError(f"cluster.env: {name!r} is no name of an environment variable")
        if name in cluster.env and name.startswith("PET_"):
            raise SubmitError(
                f"cluster.env.{name}: set cluster.nodes= and cluster.processes_per_node= instead"
            )
        if name in cluster.env and SECRET_NAME.search(name):
            raise SubmitError(
                f"cluster.env.{name} looks like a secret: put it into cluster.secrets_file (SLURM) "
                "or a Secret named in cluster.secrets (Kubernetes)"
            )
        one_line(f"cluster.env.{name}", value)
    for word in (job.id, job.run, job.folder, job.cwd, *job.arguments, *sum(job.elements, ())):
        one_line("an argument", word)
    for name in job.folder.split("/") if "://" not in job.folder else ():
        if len(os.fsencode(name)) > 255:
            raise SubmitError(
                f"the name {name[:20]}… has {len(os.fsencode(name))} bytes, a folder's may have "
                "255: give a shorter run= or root="
            )


def check_least(cluster: Cluster) -> None:
    """Refuses numbers of machines, processes, tasks and the like that are too small."""
    for label, least in LEAST.items():
        value = getattr(cluster, label)
        if value is not None and value < least:
            raise SubmitError(f"cluster.{label}={value}: at least {least} is needed")


def private_file(path: str) -> str:
    """The path of a file of secrets, if it is there and nobody but its owner may read it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise SubmitError(f"cluster.secrets_file={path}: {error.strerror}") from None
    if mode & 0o077:
        raise SubmitError(f"{path} can be read by others: chmod 600 {path}")
    return os.path.abspath(path)


def one_line(what: str, value: Any) -> str:
    """The value as text; a line break or NUL in it would write a second line of the script."""
    text = str(value)
    if re.search(r"[\n\r\0]", text):
        raise SubmitError(f"{what} holds a line break: {text!r}")
    return text


def call(
    command: Sequence[str],
    stdin: str | None = None,
    timeout: float = 120,
    hint: str = "submit from a login node that has it",
    apart: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a scheduler's program; a missing one is the user's to mend, its status the caller's.

    apart: Ctrl-C at our terminal does not reach it.
    """
    try:
        return subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            start_new_session=apart,
        )
    except FileNotFoundError:
        raise SubmitError(f"{command[0]} is not on the PATH: {hint}") from None
    except subprocess.TimeoutExpired:
        raise Unheard(f"{command[0]} gave no answer within {timeout:.0f} s") from None


def environment() -> dict[str, str]:
    """Ours without SBATCH_*: those would silently outrank the lines of the script. scontrol names
    an array's elements in full (64 characters of them unless told)."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("SBATCH_")}
    return {**ours, "SLURM_BITSTR_LEN": "0"}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip() if text.strip() else "it said nothing"
