"""How often long tests repeat: in full by `make soak`, a fixed-seed tenth in every other run."""

import json
import os
import subprocess
import time
from pathlib import Path


class Soak:
    """`SEED` in the environment means in full, by that seed."""

    def __init__(self):
        self.full = "SEED" in os.environ
        self.seed = int(os.environ.get("SEED", "5"))
        self.tests = {}
        self._began = time.time()

    def count(self, whole: int) -> int:
        """Return `whole` repetitions, or at least one and a tenth of them."""
        return whole if self.full else max(1, whole // 10)

    def write(self, path: Path) -> None:
        """Write what ran: commit, seed, seconds, and the outcome and seconds of each test."""
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
        facts = {"commit": commit.stdout.strip(), "seed": self.seed, "tests": self.tests}
        facts["seconds"] = round(time.time() - self._began)
        path.write_text(json.dumps(facts, indent=1) + "\n")
