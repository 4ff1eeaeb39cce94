"""Find the ID of a job whose submission was not confirmed.

`submit` may be killed after the scheduler has accepted a job and before its ID is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs import kubectl, kubernetes, local
from jobs.program import call, last_line
from jobs.slurm_status import notes
from jobs.spec import Cluster, SubmitError


def find(key: Sequence[str], folder: str, before: Sequence[str], cluster: Cluster) -> str:
    """Return the ID of the job with this key (`scheduler.search_keys`); empty if there is none.

    before: IDs of earlier submissions from the same folder. Raises `SubmitError` if the
    scheduler does not answer.
    """
    if cluster.scheduler == "kubernetes":
        return _object(key[0], key[1], cluster)
    if cluster.scheduler == "local":
        return _process(folder, before)
    return _queued(key[0], folder, before)


def _object(number: str, run: str, cluster: Cluster) -> str:
    """Look for the object by name; its annotation must name the run, for names can collide."""
    whole = number.partition("#")[0].split("/")
    text = kubectl.kubectl(cluster, "get", *whole, "-o", "json", "--ignore-not-found")
    there = json.loads(text)["metadata"].get("annotations", {}) if text.strip() else {}
    return number if there.get(kubernetes.RUN) == run else ""


def _process(folder: str, before: Sequence[str]) -> str:
    """Look for the newest state file, and for its process in /proc."""
    known = {number.partition("_")[0] for number in before}
    for pid in _with_state(folder, known):
        try:
            ours = f"{folder}/job.sh".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            ours = False
        return f"{pid}_{local.start_of(int(pid)) if ours else 'gone'}"
    return ""


def _queued(name: str, folder: str, before: Sequence[str]) -> str:
    """Look in the queue by job name and log folder, then for the state file of a started job."""
    listed = call(["squeue", "--me", "--noheader", "--states=all", "--format=%F %j"])
    if listed.returncode:
        raise SubmitError(f"squeue: {last_line(listed.stderr)}")
    lines = (line.strip().partition(" ") for line in listed.stdout.splitlines())
    named = {number for number, _, given in lines if given == name} - set(before)
    for number in sorted(named, key=int, reverse=True):
        shown = call(["scontrol", "-o", "show", "job", number]).stdout.replace("%%", "%")
        if f" StdOut={folder}/logs/slurm-" in shown:
            return number
    return next(iter(_with_state(folder, set(before))), "")


def _with_state(folder: str, known: set[str]) -> list[str]:
    """Return the IDs of jobs with a state file in the folder, newest first."""
    ids = {name.partition("_")[0] for name in notes(folder)}
    return sorted((n for n in ids - known if n.isdigit()), key=int, reverse=True)
