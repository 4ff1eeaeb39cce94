"""Submit, check and cancel a job with SLURM's programs.

`slurm_script` renders the script, `slurm_status` reads the job's state.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

from jobs.program import call, last_line
from jobs.slurm_refusals import reason, refused
from jobs.slurm_script import container, interpreter, srun
from jobs.spec import Cluster, Job, SubmissionUnconfirmed, SubmitError


def submit(job: Job, cluster: Cluster, script: str) -> str:
    """Submit the script, keep a copy in the job's folder, and return SLURM's job ID."""
    folder = Path(job.folder)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "job.sbatch").write_text(script)
    for place in job.writes if cluster.container != "none" else ():
        Path(place).mkdir(parents=True, exist_ok=True)  # only an existing folder can be mounted
    answer = call(["sbatch", "--parsable"], stdin=script, detached=True)
    if answer.returncode > 0 and refused(answer.stderr):
        raise SubmitError(f"sbatch refused the job: {reason(answer.stderr)}")
    # A site's wrapper of sbatch may print other lines, and `Submitted batch job` in spite of
    # --parsable. The ID comes last; a line of another form is not an ID.
    ids = re.findall(r"^(?:Submitted batch job )?(\d+)(?:;\S+)?\s*$", answer.stdout, re.M)
    if answer.returncode or not ids:
        problem = reason(answer.stderr) or f"exit {answer.returncode} and no job ID"
        raise SubmissionUnconfirmed(f"sbatch: {problem}")
    keep_notes(job, ids[-1])
    return str(ids[-1])


def keep_notes(job: Job, number: str) -> None:
    """Write the first state file of each element, so that no queued element is forgotten."""
    folder = Path(job.folder)
    for name in [f"{number}_{i}" for i in range(len(job.elements))] or [number]:
        with (
            contextlib.suppress(OSError),  # the job is queued: an error here must not hide that
            open(folder / "logs" / f"state-{name}", "x") as f,
        ):
            f.write("QUEUED\n")  # until the script replaces it


def judge(script: str) -> str:
    """Return sbatch's answer to a test. Raises `SubmitError` if it would refuse the job."""
    # The previous stage of a chain has no ID yet.
    alone = re.sub(r"^#SBATCH --(dependency|kill-on-invalid-dep)=.*\n", "", script, flags=re.M)
    answer = call(["sbatch", "--test-only"], stdin=alone)
    if answer.returncode:
        raise SubmitError(f"sbatch refused the job: {reason(answer.stderr)}")
    return last_line(answer.stderr).removeprefix("sbatch: ")


def ask(job: Job, cluster: Cluster, script: str) -> list[str]:
    """Test the job with sbatch, and the interpreter on one node with srun."""
    return [judge(script), *_default_memory(script), _ask_node(job, cluster)]


def _default_memory(script: str) -> list[str]:
    """Return a line on the memory that SLURM gives to a job that asks for none."""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.M))
    if any(name.startswith("mem") for name in options):
        return []
    queue = shlex.split(options.get("partition", "")) or [""]
    sources = [f"partition {queue[0]}".split(), ["config"]]
    texts = [call(["scontrol", "--oneliner", "show", *words]).stdout for words in sources]
    if not queue[0]:  # of all partitions, the one that jobs without one get
        texts[0] = "".join(line for line in texts[0].splitlines() if " Default=YES " in line)
    limits = re.findall(r"\bDefMemPer(Node|CPU|GPU)\s*=\s*(\d+)", "\n".join(texts))
    what = f"{limits[0][1]} MB per {limits[0][0]}" if limits else "all memory of the node"
    return [f"memory: cluster.memory_gb is not set, so the site's default applies: {what}"]


def _ask_node(job: Job, cluster: Cluster) -> str:
    probe = "import sys, torch, mlflow; print(sys.version.split()[0], torch.__version__)"
    command = [interpreter(cluster), "-c", probe]
    where = ["--nodes=1", "--ntasks=1", "--time=5", "--immediate=30", "--quiet", "--export=NONE"]
    for name in ("partition", "account", "qos"):
        if getattr(cluster, name):
            where.append(f"--{name}={getattr(cluster, name)}")
    for name in {"constraint", "reservation"} & set(cluster.sbatch):
        where.append(f"--{name}={cluster.sbatch[name]}")
    image = [w for w in srun(job, cluster) if w.startswith("--container-image")]
    test = shlex.join([*container(job, replace(cluster, gpus_per_node=0)), *command])
    lines = "\n".join([*cluster.setup, test])
    answer = call(["srun", *where, *image, "/bin/bash", "-c", lines], timeout=300)
    if answer.returncode == 0:
        return f"a node has Python and torch {last_line(answer.stdout)} at {command[0]}"
    if "mmediate" in answer.stderr or "busy" in answer.stderr:
        return "interpreter not verified: no node was free within 30 s"
    # SLURM may refuse this one-core test and still accept the job, which `judge` has tested.
    if "allocate resources" in answer.stderr:
        return f"interpreter not verified, SLURM allocated no node: {last_line(answer.stderr)}"
    raise SubmitError(
        f"a node cannot run {command[0]}: {last_line(answer.stderr)}; set cluster.python, "
        "cluster.setup or cluster.container to an environment with this project's packages"
    )


def cancel(number: str) -> None:
    """Cancel the job: tasks get SIGTERM at once, save, and are killed after KillWait."""
    answer = call(["scancel", number])
    if answer.returncode:
        raise SubmitError(f"scancel: {last_line(answer.stderr)}")
