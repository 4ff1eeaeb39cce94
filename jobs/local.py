"""Run a job on this machine: a background shell script that writes its state to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.slurm_status import notes
from jobs.spec import Cluster, Job, JobState, Status, SubmitError, check
from jobs.text import rendered


def render(job: Job, cluster: Cluster) -> str:
    """Return the script; array elements run one after the other."""
    check(job, cluster)
    if cluster.nodes > 1:
        raise SubmitError(
            f"cluster.nodes={cluster.nodes}: this machine is one node; use cluster=slurm"
        )
    return rendered(
        "job.sh.j2",
        title=f"{job.id}: {job.verb}, results in {job.run}",
        logs=f"{job.folder}/logs",
        retries=cluster.retries,
        secrets_file=cluster.secrets_file,
        env={**cluster.env, **job.env},
        after=job.after,
        cwd=job.cwd,
        code=job.code if cluster.code == "snapshot" else None,
        command=job.command(cluster.python or sys.executable),
        elements=job.elements,
    )


def placeholder(previous: Job) -> str:
    """Return the state file of the previous stage, with PID for its process ID."""
    return f"{previous.folder}/logs/state-PID"


def with_dependency(script: str, previous: Job, number: str) -> str:
    """Replace the placeholder of the previous stage by its process ID."""
    pid = number.partition("_")[0]
    return script.replace("/logs/state-PID", f"/logs/state-{pid}").replace(
        "kill -0 PID ", f"kill -0 {pid} "
    )


def submit(job: Job, text: str) -> str:
    """Start the script detached; return its process ID and start time, unique together."""
    folder = Path(job.folder)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    script = folder / "job.sh"
    script.write_text(text)
    with open(folder / "logs" / "local.out", "ab") as log:
        # Through a shell that exits at once: the script is not our child and leaves no zombie.
        started = subprocess.run(
            ["/bin/bash", "-c", '/bin/bash "$1" >&2 & echo $!', "start", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            check=True,
        )
    pid = int(started.stdout)
    end = time.monotonic() + 10
    while not (folder / "logs" / f"state-{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)  # until the state file exists, which the next stage of a chain reads
    return f"{pid}_{start_of(pid)}"


def ask(job: Job, cluster: Cluster, script: str) -> list[str]:
    """Name the interpreter; a script that renders can be started."""
    return [f"{job.id} will run on this machine with {cluster.python or sys.executable}"]


def status(number: str, folder: str | Path) -> Status:
    """Return the state that the script wrote last; FAILED if its process was killed meanwhile."""
    pid, _, started = number.partition("_")
    # Before reading the state: the script writes its last state before it exits.
    gone = start_of(int(pid)) != started
    name, _, reason = notes(folder).get(pid, "RUNNING").partition(" ")
    state = JobState(name) if name in JobState.__members__ else JobState.UNKNOWN
    if state.live and gone:
        return Status(JobState.FAILED, "the process was killed")
    return Status(state, reason)


def cancel(number: str) -> None:
    """Ask the script to save and exit."""
    pid, _, started = number.partition("_")
    if start_of(int(pid)) != started:
        raise SubmitError(f"process {pid} has already ended")
    os.kill(int(pid), signal.SIGTERM)


def start_of(pid: int) -> str:
    """Return a process's start time in ticks since boot; empty if it has ended."""
    try:
        if not Path("/proc/self").exists():  # macOS: only the process ID is known
            os.kill(pid, 0)
            return "alive"
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
