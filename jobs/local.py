"""This machine as a scheduler: a shell script in the background, whose notes are its status."""

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
    """The whole script; elements of an array run one after the other."""
    check(job, cluster)
    if cluster.nodes > 1:
        raise SubmitError(f"cluster.nodes={cluster.nodes}: this machine is one; use cluster=slurm")
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


def submit(job: Job, cluster: Cluster) -> str:
    """Starts the script, detached; returns its process id and start time: together unique."""
    folder = Path(job.folder)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    script = folder / "job.sh"
    script.write_text(render(job, cluster))
    with open(folder / "logs" / "local.out", "ab") as log:
        # Through a shell that ends at once: the script is then nobody's child here, and no zombie.
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
        time.sleep(0.01)  # its first note, which the next stage of a chain looks for
    return f"{pid}_{start_of(pid)}"


def ask(job: Job, cluster: Cluster) -> list[str]:
    """Nothing to ask: what can be rendered can be started."""
    render(job, cluster)
    return [f"{cluster.python or sys.executable} will run it on this machine"]


def dependency(number: str, folder: str) -> str:
    """What `Job.after` holds for a script that must have succeeded before."""
    return f"{folder}/logs/state-{number.partition('_')[0]}"


def status(number: str, folder: str | Path) -> Status:
    """The script's last note; one that says it runs, of a process that is gone, was killed."""
    pid, _, started = number.partition("_")
    gone = start_of(int(pid)) != started  # before the note: its last one comes before its end
    word, _, reason = notes(folder).get(pid, "RUNNING").partition(" ")
    state = JobState(word) if word in JobState.__members__ else JobState.UNKNOWN
    if state.live and gone:
        return Status(JobState.FAILED, "its process was killed")
    return Status(state, reason)


def cancel(number: str) -> None:
    """Asks it to save and leave."""
    pid, _, started = number.partition("_")
    if start_of(int(pid)) != started:
        raise SubmitError(f"process {pid} is gone already")
    os.kill(int(pid), signal.SIGTERM)


def start_of(pid: int) -> str:
    """Start time in ticks since boot; empty if there is no such process, or only its zombie."""
    try:
        if not Path("/proc/self").exists():  # macOS: a process id must do
            os.kill(pid, 0)
            return "alive"
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]
