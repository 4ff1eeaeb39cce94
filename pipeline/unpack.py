"""`python -m pipeline.unpack URL SHA256 VERB …`: the verb, with the code of an archived commit.

What a pod runs when its image holds the environment but not the commit. The archive is checked,
unpacked, and put before the image's own packages; this process becomes the command.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from jobs.snapshot import unpack
from shards import store


def main(argv: list[str]) -> None:
    """Replaces this process; exit status 78 if the archive is not what was submitted."""
    url, sha256, *words = argv
    data = store.read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        print(f"{store.display(url)} is not the archive that was submitted", file=sys.stderr)
        raise SystemExit(78)
    code = unpack(data, Path(tempfile.gettempdir()) / f"code-{sha256[:12]}")
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), *before])
    os.environ["PYTHONSAFEPATH"] = "1"  # the image's own folder does not come first
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *words])


if __name__ == "__main__":
    main(sys.argv[1:])
