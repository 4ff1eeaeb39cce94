"""Which disk a file lies on: sqlite's locks do not hold on one that several machines mount."""

import functools
import sys
from pathlib import Path

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.sshfs")


@functools.cache
def warn_of_network(path: Path) -> None:
    """Says once, on stderr, that a sqlite file lies on a network disk."""
    kind = disk_of(path)
    if kind.startswith(NETWORK):
        print(
            f"tracking: {path} lies on {kind}, where sqlite breaks under several jobs: set "
            "MLFLOW_TRACKING_URI to a server (jobs/deploy/server), or root= to a disk of this node",
            file=sys.stderr,
        )


def disk_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds `path`; "" where Linux does not tell.

    table: mountinfo as proc(5) has it; of two mounts at one place the later one counts.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return ""
    depth, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = left.split()[4].replace("\\040", " ")
        if path.resolve().is_relative_to(mounted) and len(mounted) >= depth:
            depth, kind = len(mounted), right.split()[0]
    return kind
