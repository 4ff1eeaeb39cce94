"""Determine the state of a SLURM job and the reason.

Does not use `--json`, whose schema changes with every release of SLURM.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from jobs.program import call, last_line
from jobs.spec import JobState, Status, SubmitError, explained, numbers
from jobs.spec import summary as summed

STATES = {
    "COMPLETED": JobState.SUCCEEDED,
    "CANCELLED": JobState.CANCELLED,
    "PENDING": JobState.QUEUED,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.QUEUED,
    "RESV_DEL_HOLD": JobState.QUEUED,
    "SPECIAL_EXIT": JobState.QUEUED,
    "SUSPENDED": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "CONFIGURING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "PREEMPTED": JobState.INTERRUPTED,
    "TIMEOUT": JobState.INTERRUPTED,
    "NODE_FAIL": JobState.INTERRUPTED,
}
REASONS = {
    "PREEMPTED": "preempted, and not requeued",
    "TIMEOUT": "reached the wall limit before everything was saved: raise cluster.lead_seconds",
    "NODE_FAIL": "a node failed, and the job was not requeued",
    "OUT_OF_MEMORY": "out of memory: raise cluster.memory_gb",
    "BOOT_FAIL": "a node did not start",
    "DEADLINE": "the job's deadline passed",
}

FAILED_DEPENDENCY = "DependencyNeverSatisfied"
NO_OUTPUT_FILE = 128 + 53  # ExitCode=0:53: the script's output file could not be created
WAIT_REASONS = {
    "AssocGrpGRES": "your account's GPUs are all in use",
    "BeginTime": "not before its start time (up to two minutes after a requeue)",
    "Dependency": "waits for the previous job",
    FAILED_DEPENDENCY: "a previous job failed: cancel this one",
    "InvalidAccount": "check cluster.account",
    "InvalidQOS": "check cluster.qos",
    "JobArrayTaskLimit": "cluster.throttle elements are running",
    "PartitionConfig": "over the partition's time or size limit",
    "PartitionNodeLimit": "the partition has fewer nodes: lower cluster.nodes",
    "PartitionTimeLimit": "over the partition's time limit: lower cluster.time",
    "Priority": "jobs with higher priority come first",
    "QOSMaxJobsPerUserLimit": "the QOS limit of running jobs is reached",
    "Resources": "waits for free nodes",
}


def status(number: str, folder: str | Path) -> Status:
    """Return the state from scontrol, else sacct (finished jobs), else the job's state file."""
    shown = call(["scontrol", "-o", "show", "job", number])
    if shown.returncode == 0 and shown.stdout.strip():
        return from_scontrol(shown.stdout, notes(folder), f"{folder}/logs")
    if "Invalid job id" not in shown.stderr:
        raise SubmitError(f"scontrol: {last_line(shown.stderr)}")
    listed = call(["sacct", "-XPn", "-j", number, "-o", "JobID,State,ExitCode"])
    if listed.returncode == 0 and listed.stdout.strip():
        return from_sacct(listed.stdout, notes(folder), f"{folder}/logs")
    return from_notes(
        {k: v for k, v in notes(folder).items() if k.partition("_")[0] == number}, "SLURM"
    )


def from_notes(notes: dict[str, str], scheduler: str) -> Status:
    """Return the state from the state files, for a job that `scheduler` has forgotten."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    for name, note in notes.items():
        label, _, reason = note.partition(" ")
        state = JobState(label) if label in JobState.__members__ else JobState.UNKNOWN
        if state.live:  # the job did not live to write its end
            reason = f"{scheduler} has forgotten the job; last state: {label.lower()}"
            state = JobState.UNKNOWN
        states[name.rpartition("_")[2]] = state
        reasons.setdefault(state, reason)
    whole = summed(states)
    reason = reasons.get(whole, f"{scheduler} has forgotten the job")
    return Status(whole, reason, 0, states if len(states) > 1 else {})


def notes(folder: str | Path) -> dict[str, str]:
    """Return the last line of each state file, by job ID, or `ARRAY_TASK` in an array."""
    files = Path(folder, "logs").glob("state-*")
    return {
        p.name.removeprefix("state-"): p.read_text().strip() for p in files if "." not in p.name
    }


def from_scontrol(
    text: str, notes: dict[str, str] | None = None, logs: str = "<run>/logs"
) -> Status:
    """Parse `scontrol -o show job`: one line per job, or per element of an array."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    number, restarts = "", 0
    for line in text.strip().splitlines():
        values: dict[str, str] = dict(re.findall(r"(?:^|\s)(\w[\w/:]*)=(\S*)", line))
        number = values.get("ArrayJobId", values["JobId"])
        task = values.get("ArrayTaskId")
        note = (notes or {}).get(f"{number}_{task}" if task else number, "")
        state, reason = _state(values["JobState"], _code(values.get("ExitCode", "0:0")), note, logs)
        if state is JobState.QUEUED:
            label = values.get("Reason", "None")
            reason = (
                ""
                if label == "None"
                else ": ".join(filter(None, [label, WAIT_REASONS.get(label, "")]))
            )
        elif state is JobState.RUNNING:
            reason = f"on {values.get('NodeList', '')}"
        elif state is JobState.CANCELLED and values.get("Reason") == FAILED_DEPENDENCY:
            reason = FAILED_DEPENDENCY  # another Reason is what the job waited for
        restarts += int(values.get("Restarts", 0))
        for element in numbers(task or number):
            states[element] = state
        reasons.setdefault(state, reason)
    # scontrol lists no element that was cancelled before its start or that ended long ago.
    for name, note in (notes or {}).items():
        array, _, element = name.partition("_")
        if element and array == number and element not in states:
            label, _, reason = note.partition(" ")
            known = JobState(label) if label in JobState.__members__ else JobState.UNKNOWN
            last = {JobState.QUEUED: JobState.CANCELLED, JobState.RUNNING: JobState.UNKNOWN}
            states[element] = last.get(known, known)
            reasons.setdefault(states[element], "" if known in last else reason)
    whole = summed(states)
    return Status(whole, reasons.get(whole, ""), restarts, states if len(states) > 1 else {})


def from_sacct(text: str, notes: dict[str, str] | None = None, logs: str = "<run>/logs") -> Status:
    """Parse `sacct -XPn -o JobID,State,ExitCode`; `CANCELLED by 1000` names the user."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    for line in text.strip().splitlines():
        number, label, code = line.split("|")[:3]
        state, reason = _state(label.split()[0], _code(code), (notes or {}).get(number, ""), logs)
        user = re.search(r"by (\d+)", label)
        for element in numbers(number.partition("_")[2].strip("[]") or number):
            states[element] = state
        reasons.setdefault(state, f"by user {user[1]}" if user else reason)
    whole = summed(states)
    return Status(whole, reasons.get(whole, ""), 0, states if len(states) > 1 else {})


def _code(text: str) -> int:
    """Convert `STATUS:SIGNAL` to a shell's exit status."""
    status, _, signal = text.partition(":")
    return 128 + int(signal) if int(signal or 0) else int(status)


def _state(label: str, code: int, note: str, logs: str) -> tuple[JobState, str]:
    if label == "FAILED" and code == NO_OUTPUT_FILE:
        return (
            JobState.FAILED,
            f"a node cannot open {logs}: check that the folder is on a shared disk",
        )
    if label == "FAILED":
        saved = code == os.EX_TEMPFAIL
        last, _, why = note.partition(" ")
        why = "" if last in ("RUNNING", "QUEUED") else why  # the script could not write its end
        return (JobState.INTERRUPTED if saved else JobState.FAILED), why or explained(code)
    state = STATES.get(label, JobState.FAILED if label in REASONS else JobState.UNKNOWN)
    return state, REASONS.get(label, "")
