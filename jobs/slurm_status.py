"""What became of a SLURM job, in our states, with the reason.

Nothing of `--json` is used: its schema changes with every release of SLURM.
"""

from __future__ import annotations

import re
from pathlib import Path

from jobs.spec import JobState, Status, SubmitError, call, explained, last_line, numbers
from jobs.spec import summary as summed

ENDED = {
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
MEANT = {
    "PREEMPTED": "preempted, and not requeued",
    "TIMEOUT": "the wall limit came before everything was saved: raise cluster.lead_seconds",
    "NODE_FAIL": "a node was lost, and the job not requeued",
    "OUT_OF_MEMORY": "out of memory: raise cluster.memory_gb",
    "BOOT_FAIL": "a node did not start",
    "DEADLINE": "its deadline passed",
}

NEVER = "DependencyNeverSatisfied"
UNLAUNCHED = 128 + 53  # ExitCode=0:53: the script's output file could not be made
WAITS = {
    "AssocGrpGRES": "your account's GPUs are all in use",
    "BeginTime": "it may not start yet (after a requeue: for up to two minutes)",
    "Dependency": "for the job before it",
    NEVER: "for a job that failed: cancel it",
    "InvalidAccount": "check cluster.account",
    "InvalidQOS": "check cluster.qos",
    "JobArrayTaskLimit": "cluster.throttle",
    "PartitionConfig": "the partition does not allow that much time or size",
    "PartitionNodeLimit": "the partition has fewer nodes: lower cluster.nodes",
    "PartitionTimeLimit": "the partition does not allow that long: lower cluster.time",
    "Priority": "others come first",
    "QOSMaxJobsPerUserLimit": "as many of your jobs run as the QOS allows",
    "Resources": "for free nodes",
}


def status(number: str, folder: str | Path) -> Status:
    """What scontrol says while it remembers the job, then sacct, then the job's own note."""
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


def from_notes(left: dict[str, str], who: str) -> Status:
    """What the last words of a job's parts come to once the scheduler has forgotten it."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    for name, note in left.items():
        word, _, reason = note.partition(" ")
        state = JobState(word) if word in JobState.__members__ else JobState.UNKNOWN
        if state.live:  # a note that nobody replaced
            reason = f"{who} has forgotten it; it was {word.lower()}"
            state = JobState.UNKNOWN
        states[name.rpartition("_")[2]] = state
        reasons.setdefault(state, reason)
    whole = summed(states)
    reason = reasons.get(whole, f"{who} has forgotten it")
    return Status(whole, reason, 0, states if len(states) > 1 else {})


def notes(folder: str | Path) -> dict[str, str]:
    """The line that each job's script last wrote, by job id, or `ARRAY_TASK` of an array."""
    found = Path(folder, "logs").glob("state-*")
    return {
        p.name.removeprefix("state-"): p.read_text().strip() for p in found if "." not in p.name
    }


def from_scontrol(
    text: str, notes: dict[str, str] | None = None, logs: str = "<run>/logs"
) -> Status:
    """`scontrol -o show job`: one line a job, or one for each element of an array."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    number, restarts = "", 0
    for line in text.strip().splitlines():
        found: dict[str, str] = dict(re.findall(r"(?:^|\s)(\w[\w/:]*)=(\S*)", line))
        number = found.get("ArrayJobId", found["JobId"])
        task = found.get("ArrayTaskId")
        note = (notes or {}).get(f"{number}_{task}" if task else number, "")
        state, reason = _state(found["JobState"], _code(found.get("ExitCode", "0:0")), note, logs)
        if state is JobState.QUEUED:
            word = found.get("Reason", "None")
            reason = "" if word == "None" else ": ".join(filter(None, [word, WAITS.get(word, "")]))
        elif state is JobState.RUNNING:
            reason = f"on {found.get('NodeList', '')}"
        elif state is JobState.CANCELLED and found.get("Reason") == NEVER:
            reason = NEVER  # any other is what it waited for
        restarts += int(found.get("Restarts", 0))
        for element in numbers(task or number):
            states[element] = state
        reasons.setdefault(state, reason)
    # An element that is cancelled before it starts leaves no record, an old one none any more.
    for name, note in (notes or {}).items():
        array, _, element = name.partition("_")
        if element and array == number and element not in states:
            word, _, reason = note.partition(" ")
            known = JobState(word) if word in JobState.__members__ else JobState.UNKNOWN
            last = {JobState.QUEUED: JobState.CANCELLED, JobState.RUNNING: JobState.UNKNOWN}
            states[element] = last.get(known, known)
            reasons.setdefault(states[element], "" if known in last else reason)
    whole = summed(states)
    return Status(whole, reasons.get(whole, ""), restarts, states if len(states) > 1 else {})


def from_sacct(text: str, notes: dict[str, str] | None = None, logs: str = "<run>/logs") -> Status:
    """`sacct -XPn -o JobID,State,ExitCode`; `CANCELLED by 1000` keeps who did it."""
    states: dict[str, JobState] = {}
    reasons: dict[JobState, str] = {}
    for line in text.strip().splitlines():
        number, word, code = line.split("|")[:3]
        state, reason = _state(word.split()[0], _code(code), (notes or {}).get(number, ""), logs)
        who = re.search(r"by (\d+)", word)
        for element in numbers(number.partition("_")[2].strip("[]") or number):
            states[element] = state
        reasons.setdefault(state, f"by user {who[1]}" if who else reason)
    whole = summed(states)
    return Status(whole, reasons.get(whole, ""), 0, states if len(states) > 1 else {})


def _code(text: str) -> int:
    """`ExitCode=STATUS:SIGNAL` as a shell's one number."""
    status, _, signal = text.partition(":")
    return 128 + int(signal) if int(signal or 0) else int(status)


def _state(word: str, code: int, note: str, logs: str) -> tuple[JobState, str]:
    if word == "FAILED" and code == UNLAUNCHED:
        return JobState.FAILED, f"a node cannot open {logs}: is the folder on a shared disk?"
    if word == "FAILED":
        saved = code == 75
        last, _, told = note.partition(" ")
        told = "" if last in ("RUNNING", "QUEUED") else told  # it did not come to its last word
        return (JobState.INTERRUPTED if saved else JobState.FAILED), told or explained(code)
    return ENDED.get(word, JobState.FAILED if word in MEANT else JobState.UNKNOWN), MEANT.get(
        word, ""
    )
