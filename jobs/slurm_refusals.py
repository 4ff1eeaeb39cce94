"""Read sbatch's errors: whether the job was refused, why, and how to fix it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.program import last_line

# Answers of slurmctld that refuse the job. After any other failure (a timeout, a lost connection)
# it may have accepted the job. What sbatch itself refuses is never sent: see `refused`.
SENT = "Batch job submission failed"
REFUSALS = re.compile(
    "invalid|not available|not permitted|denied|violates|more processors|too (many|large|long)|"
    "exceed|limit|specification|dependency|duplicate|disabled|drain|in use|not supported|"
    "pathname|rejected|incorrect", re.I
)  # fmt: skip
HINTS = {
    r"invalid partition": "see `sinfo -s` for the partitions, set cluster.partition=",
    r"invalid account|account/partition|InvalidAccount": "see `sacctmgr show assoc user=$USER`, "
    "set cluster.account= (and cluster.qos=)",
    r"invalid qos": "see `sacctmgr show qos`, set cluster.qos=",
    r"node configuration is not available|more processors|generic resource|GRES":
    "no node has these resources: lower cluster.gpus_per_node, cpus_per_node, memory_gb or nodes",
    r"array specification": "more elements than MaxArraySize of `scontrol show config`: lower "
    "cluster.tasks, or submit a sweep in parts",
    r"time limit": "lower cluster.time=, or choose another cluster.partition=",
    r"unrecognized option|invalid option|ambiguous": "check cluster.sbatch",
    r"contact slurm controller|fetch_config|configuration (file|source)": "SLURM does not answer "
    "here: check `scontrol ping`, or submit from a login node",
    r"dependency": "the job that this one waits for is unknown: see `status`",
}  # fmt: skip


def refused(stderr: str) -> bool:
    """Return whether sbatch or slurmctld refused the job."""
    last = last_line(stderr)
    answer = last.rpartition(f"{SENT}: ")[2]
    return bool(REFUSALS.search(answer)) if SENT in last else bool(stderr.strip())


def reason(stderr: str) -> str:
    """Return sbatch's errors as one line, with a hint."""
    message = "; ".join(
        re.sub(r"^sbatch: (error: )?", "", line.strip())
        for line in _without_noise(stderr.strip().splitlines())
    )
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, message, re.I)]
    return f"{message} ({hints[0]})" if hints else message


def _without_noise(lines: Sequence[str]) -> list[str]:
    kept = [line for line in lines if "Batch job submission failed" not in line]
    return [*(k for k in kept if "error" in k), *(x for x in lines if x not in kept)] or list(lines)
