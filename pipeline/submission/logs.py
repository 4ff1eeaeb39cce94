"""`logs ID [-f]`: what a job said, from the scheduler while it has it, then from the run."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from jobs import kubectl
from jobs.slurm_status import notes
from jobs.spec import SubmitError
from jobs.watching import watched
from pipeline.config.schema import LogsConfig
from pipeline.runs import job_record
from pipeline.runs.job_record import SubmittedJob
from shards import store

# SLURM's and bash's own words about a process that ended are not what it died of.
NOISE = ("srun:", "slurmstepd", "stopped on request", "crash ")


def main(config: LogsConfig) -> None:
    """Prints to stdout; with `follow` until the job has ended."""
    record = job_record.find(config.id, config.root)
    if record.cluster["scheduler"] == "kubernetes":
        _pods(record, config.follow)
    else:
        _files(record, config.follow)


def _pods(record: SubmittedJob, follow: bool) -> None:
    if record.number and kubectl.logs(record.number, record.where, follow, record.run):
        return
    logs = store.join(record.folder, "logs")
    names = [n for n in store.names(logs) if n.endswith(".log")]
    if not names:
        raise SubmitError(
            f"{record.id} has no pods and {store.display(logs)} holds no log: it is "
            f"{record.status().line()}"
        )
    for name in names:
        for line in store.read(store.join(logs, name)).decode(errors="replace").splitlines():
            print(f"[{name.removesuffix('.log')}] {line}")


def _files(record: SubmittedJob, follow: bool) -> None:
    read: dict[Path, int] = {}
    looks = watched(lambda: record.status().state.live, lambda: _notes(record))
    for _ in looks if follow else [False]:
        for path in outputs(record):
            with open(path, "rb") as file:
                file.seek(read.get(path, 0))
                sys.stdout.write(file.read().decode(errors="replace"))
                read[path] = file.tell()
        sys.stdout.flush()
    if not read:
        raise SubmitError(f"{record.id} has said nothing yet: see `status {record.id}`")


def _notes(record: SubmittedJob) -> dict[str, str]:
    """What the job's scripts noted of it last: at its end they say so before the scheduler does."""
    number = record.number.partition("_")[0]
    return {k: v for k, v in notes(record.folder).items() if k.partition("_")[0] == number}


def outputs(record: SubmittedJob) -> list[Path]:
    """Files that the scheduler wrote for the last submission, in order."""
    folder = Path(record.folder, "logs")
    if record.cluster["scheduler"] == "local":
        return [p for p in [folder / "local.out"] if p.exists()]
    found = [
        *folder.glob(f"slurm-{record.number}.out"),
        *folder.glob(f"slurm-{record.number}_*.out"),
    ]
    return sorted(found)


def errors(record: SubmittedJob) -> list[tuple[float, str]]:
    """When and why each node of the last attempt failed, as its launcher said."""
    if not store.is_local(record.folder):
        return []
    found = []
    for path in Path(record.folder, "logs").glob(f"error-{record.number}[-_]*"):
        with suppress(ValueError, OSError):  # empty where the disk was full; gone at a restart
            when, _, line = path.read_text().strip().partition(" ")
            found.append((float(when), line))
    return found


def last_words(record: SubmittedJob) -> str | None:
    """The last line of a failed job that is its own; None where it left none."""
    for path in reversed(outputs(record) if store.is_local(record.folder) else []):
        lines = path.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            said = line.partition(": ")[2] if line[:1].isdigit() else line
            if said.strip() and not line.startswith(NOISE):
                return said.strip()
    return None
