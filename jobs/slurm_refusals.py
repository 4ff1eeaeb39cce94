"""What sbatch's errors say: whether the job was refused, why, and what the user can do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.spec import last_line

# Of what slurmctld says to a job, what is a no; all else (a timeout, a lost connection) leaves open
# whether it took it. What sbatch itself refuses it does not send: see `refused`.
SENT = "Batch job submission failed"
NO = re.compile(
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
    "no node has that much: lower cluster.gpus_per_node, cpus_per_node, memory_gb or nodes",
    r"array specification": "more elements than MaxArraySize of `scontrol show config`: lower "
    "cluster.tasks, or submit a sweep in parts",
    r"time limit": "lower cluster.time=, or choose another cluster.partition=",
    r"unrecognized option|invalid option|ambiguous": "look at cluster.sbatch",
    r"contact slurm controller|fetch_config|configuration (file|source)": "SLURM does not answer "
    "here: look at `scontrol ping`, or submit from a login node",
    r"dependency": "a job that this one waits for is unknown: see `status`",
}  # fmt: skip


def refused(stderr: str) -> bool:
    """Whether sbatch's last word is a no, by itself or by slurmctld."""
    last = last_line(stderr)
    said = last.rpartition(f"{SENT}: ")[2]
    return bool(NO.search(said)) if SENT in last else bool(stderr.strip())


def reason(stderr: str) -> str:
    told = "; ".join(
        re.sub(r"^sbatch: (error: )?", "", line.strip())
        for line in _without_noise(stderr.strip().splitlines())
    )
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, told, re.I)]
    return f"{told} ({hints[0]})" if hints else told


def _without_noise(lines: Sequence[str]) -> list[str]:
    kept = [line for line in lines if "Batch job submission failed" not in line]
    return [*(k for k in kept if "error" in k), *(x for x in lines if x not in kept)] or list(lines)
