"""Show a job's log: `logs ID [-f]`, from the scheduler, later from the job's folder."""

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

# Lines of SLURM and of the job's script about an ended process, which do not name the cause.
NOISE = ("srun:", "slurmstepd", "stopped on request", "crash ")


def main(config: LogsConfig) -> None:
    """Print the log to stdout; with `follow` until the job has ended."""
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
            f"{record.id} has no pods and {store.display(logs)} holds no log (state: "
            f"{record.status().line()})"
        )
    for name in names:
        for line in store.read(store.join(logs, name)).decode(errors="replace").splitlines():
            print(f"[{name.removesuffix('.log')}] {line}")


def _files(record: SubmittedJob, follow: bool) -> None:
    read: dict[Path, int] = {}
    polls = watched(lambda: record.status().state.live, lambda: _notes(record))
    for _ in polls if follow else [False]:
        for path in outputs(record):
            with open(path, "rb") as file:
                file.seek(read.get(path, 0))
                sys.stdout.write(file.read().decode(errors="replace"))
                read[path] = file.tell()
        sys.stdout.flush()
    if not read:
        raise SubmitError(f"{record.id} has no log yet: see `status {record.id}`")


def _notes(record: SubmittedJob) -> dict[str, str]:
    """Return the job's state files, which show its end before the scheduler does."""
    number = record.number.partition("_")[0]
    return {k: v for k, v in notes(record.folder).items() if k.partition("_")[0] == number}


def outputs(record: SubmittedJob) -> list[Path]:
    """Return the output files of the last submission, in order."""
    folder = Path(record.folder, "logs")
    if record.cluster["scheduler"] == "local":
        return list(folder.glob("local.out"))
    number = record.number
    return sorted([*folder.glob(f"slurm-{number}.out"), *folder.glob(f"slurm-{number}_*.out")])


def errors(record: SubmittedJob) -> list[tuple[float, str]]:
    """Return the time and the error of each node of the last attempt, as its launcher wrote it."""
    if not store.is_local(record.folder):
        return []
    lines = []
    for path in Path(record.folder, "logs").glob(f"error-{record.number}[-_]*"):
        with suppress(ValueError, OSError):  # empty if the disk was full, removed at a restart
            when, _, line = path.read_text().strip().partition(" ")
            lines.append((float(when), line))
    return lines


def last_output(record: SubmittedJob) -> str | None:
    """Return the last line that a failed job itself printed; None if there is none."""
    for path in reversed(outputs(record) if store.is_local(record.folder) else []):
        lines = path.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            text = line.partition(": ")[2] if line[:1].isdigit() else line  # srun --label
            if text.strip() and not line.startswith(NOISE):
                return text.strip()
    return None
