"""Run the programs of a scheduler."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from jobs.spec import SubmissionUnconfirmed, SubmitError


def call(
    command: Sequence[str],
    stdin: str | None = None,
    timeout: float = 120,
    hint: str = "submit from a login node that has it",
    detached: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a scheduler's program; the caller checks its exit status.

    detached: in a session of its own, so that Ctrl-C at the terminal does not reach it.
    """
    try:
        return subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            start_new_session=detached,
        )
    except FileNotFoundError:
        raise SubmitError(f"{command[0]} is not on the PATH: {hint}") from None
    except subprocess.TimeoutExpired:
        raise SubmissionUnconfirmed(f"{command[0]} did not answer within {timeout:.0f} s") from None


def environment() -> dict[str, str]:
    """Return this environment for a scheduler's program.

    Without SBATCH_*, which would silently override the script's directives; with
    SLURM_BITSTR_LEN=0, else scontrol cuts the list of an array's elements at 64 characters.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SBATCH_")}
    return {**inherited, "SLURM_BITSTR_LEN": "0"}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip() if text.strip() else "no output"
