"""Print what `docs/trust.md` promises as a table, each row with the command that shows it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINE = "{:<34} {:>16}   {}"
TESTS = {  # row: file of tests, and the line that each of its tests prints
    "crash points walked": ("tests/pipeline/test_crash_points.py", r"crash points: (\d+) of (\d+)"),
    "foreign inputs tried": ("tests/test_foreign_bytes.py", r"foreign inputs: (\d+) for"),
    "properties": ("tests/test_properties.py", r"(\d+) passed"),
    "pods admitted as restricted": ("tests/jobs/test_pod_security.py", r"(\d+) passed"),
    "secrets scanned for": ("tests/test_secrets_left.py", r"(\d+) passed"),
    "commands without a network": ("tests/test_locked.py", r"(\d+) passed"),
}


def main() -> int:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    rows = [re.findall(r"^([\w.-]+)==", lock.read_text(), re.M) for lock in locks]
    hashes = sum(lock.read_text().count("--hash=sha256:") for lock in locks)
    print(LINE.format("what", "how many", "shown by"))
    packages = len({name for names in rows for name in names})
    print(LINE.format("packages locked", packages, f"make lock ({hashes} hashes)"))
    failed = 0
    for name, (file, pattern) in TESTS.items():
        command = ["-m", "pytest", "-q", "-s", file]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        found = re.findall(pattern, done.stdout)
        counts = [[int(n) for n in ([row] if isinstance(row, str) else row)] for row in found]
        shown = " of ".join(str(sum(column)) for column in zip(*counts)) or "none"
        failed |= done.returncode
        shown += " FAILED" * bool(done.returncode)
        print(LINE.format(name, shown, f"python {' '.join(command)}"), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
