"""`python -m pipeline.unpack URL SHA256 VERB …`: the verb, with the code of an archived commit.

What a pod runs when its image holds the environment but not the commit. The archive is checked,
unpacked, and put before the image's own packages; this process becomes the command. What hinders
that is the pod's last word, as an error of the verb would be.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from jobs.snapshot import importable, unpack
from pipeline.launch.output import record_error, with_job_log
from shards import objects, store


def main(argv: list[str]) -> None:
    """Replaces this process. Exit status 78 if the archive is not the one that was submitted, is
    gone or may not be read; 1, which is tried again, after anything else."""
    url, sha256, *words = argv
    place = store.display(url)
    try:
        code = _unpacked(url, sha256)
    except Exception as error:
        told = f"the code at {place} cannot be had: {str(error) or type(error).__name__}"
        lasting = isinstance(error, (ValueError, FileNotFoundError))
        passing = isinstance(error, objects.Unavailable)
        raise SystemExit(_ended(told, os.EX_CONFIG if lasting and not passing else 1)) from None
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["LACUNA_CODE"] = str(code)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), *before])
    os.environ["PYTHONSAFEPATH"] = "1"  # the image's own folder does not come first
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *words])


def _unpacked(url: str, sha256: str) -> Path:
    data = store.read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("it is not the archive that was submitted: submit again")
    here = tempfile.gettempdir()
    return unpack(data, Path(importable(f"{here}/code-{sha256[:12]}", f"TMPDIR={here}")))


def _ended(told: str, status: int) -> int:
    """Leaves the line for Kubernetes first, then in the job's folder, which may be out of reach."""
    line = f"pipeline unpack: {' '.join(told.split())}"
    record_error(line)

    def said() -> int:
        print(line, file=sys.stderr)
        return status

    return with_job_log(said)
