"""The number of a job that was handed over and never heard of again.

`submit` may be killed between a scheduler's yes and the line that keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs import kubectl, kubernetes, local
from jobs.slurm_status import notes
from jobs.spec import Cluster, SubmitError, call, last_line


def find(sought: Sequence[str], folder: str, before: Sequence[str], cluster: Cluster) -> str:
    """The scheduler's id of what `scheduler.sought` describes; empty where there is none.

    before: ids of earlier submissions from the same folder. Raises `SubmitError` where the
    scheduler gives no answer.
    """
    if cluster.scheduler == "kubernetes":
        return _object(sought[0], sought[1], cluster)
    if cluster.scheduler == "local":
        return _process(folder, before)
    return _queued(sought[0], folder, before)


def _object(number: str, run: str, cluster: Cluster) -> str:
    """It has a name of its own, which others' could have too."""
    whole = number.partition("#")[0].split("/")
    text = kubectl.kubectl(cluster, "get", *whole, "-o", "json", "--ignore-not-found")
    there = json.loads(text)["metadata"].get("annotations", {}) if text.strip() else {}
    return number if there.get(kubernetes.RUN) == run else ""


def _process(folder: str, before: Sequence[str]) -> str:
    """Of the scripts that left a note; whether it runs still, /proc tells."""
    known = {number.partition("_")[0] for number in before}
    for pid in _noted(folder, known):
        try:
            ours = f"{folder}/job.sh".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            ours = False
        return f"{pid}_{local.start_of(int(pid)) if ours else 'gone'}"
    return ""


def _queued(name: str, folder: str, before: Sequence[str]) -> str:
    """By its name in the queue and where it writes; one that has begun left a note."""
    listed = call(["squeue", "--me", "--noheader", "--states=all", "--format=%F %j"])
    if listed.returncode:
        raise SubmitError(f"squeue: {last_line(listed.stderr)}")
    lines = (line.strip().partition(" ") for line in listed.stdout.splitlines())
    named = {number for number, _, given in lines if given == name} - set(before)
    for number in sorted(named, key=int, reverse=True):
        shown = call(["scontrol", "-o", "show", "job", number]).stdout.replace("%%", "%")
        if f" StdOut={folder}/logs/slurm-" in shown:
            return number
    return next(iter(_noted(folder, set(before))), "")


def _noted(folder: str, known: set[str]) -> list[str]:
    """Numbers of the jobs that left notes in the folder, the last first."""
    found = {name.partition("_")[0] for name in notes(folder)}
    return sorted((n for n in found - known if n.isdigit()), key=int, reverse=True)
