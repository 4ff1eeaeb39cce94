"""Run `python -m pipeline.unpack URL SHA256 COMMAND …` with the code of an archived commit.

A pod runs this when its image holds the environment but not the commit. The archive is verified,
unpacked, and put before the image's own packages; this process then becomes the command. A failure
is reported like an error of the command.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from jobs.snapshot import importable, unpack
from pipeline.common.console import say
from pipeline.common.errors import one_line
from pipeline.launch.output import record_error, with_job_log
from shards import objects, store


def main(argv: list[str]) -> None:
    """Replace this process by the command.

    Exit status 78 if the archive was changed, is missing or may not be read; else 1, which is
    retried.
    """
    url, sha256, *args = argv
    place = store.display(url)
    try:
        code = _unpacked(url, sha256)
    except Exception as error:
        permanent = isinstance(error, (ValueError, FileNotFoundError))
        permanent &= not isinstance(error, objects.Unavailable)
        line = f"pipeline unpack: cannot load the code from {place}: {one_line(error)}"
        record_error(line)  # to Kubernetes first: the job's folder may be unreachable

        def report() -> int:
            say(line)
            return os.EX_CONFIG if permanent else 1

        raise SystemExit(with_job_log(report)) from None
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["LACUNA_CODE"] = str(code)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), *before])
    os.environ["PYTHONSAFEPATH"] = "1"  # else the working folder would come first
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *args])


def _unpacked(url: str, sha256: str) -> Path:
    data = store.read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("the archive is not the submitted one (SHA-256 differs): submit again")
    scratch = tempfile.gettempdir()
    return unpack(data, Path(importable(f"{scratch}/code-{sha256[:12]}", f"TMPDIR={scratch}")))
