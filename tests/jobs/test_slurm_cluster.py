"""The private SLURM itself: whoever made it may be killed at any time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import slurm_cluster
from tests.support.netns import Network

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
MAKER = """
import sys, time
from pathlib import Path
from tests.support.slurm_cluster import SlurmCluster
with SlurmCluster(Path(sys.argv[1])) as slurm:
    print(slurm.network.tag, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(
    slurm_cluster.missing() is not None and not os.environ.get("CI"), reason="no private SLURM"
)
def test_a_cluster_whose_maker_is_killed_is_gone_when_the_next_one_starts(tmp_path):
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", MAKER, str(tmp_path / "cluster")]
    maker = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True)
    tag = maker.stdout.readline().strip()
    assert len(running(tmp_path)) >= 4 and len(left(tag)) >= 3
    maker.kill()
    maker.communicate()
    end = time.monotonic() + 60
    while alive := running(tmp_path):
        assert time.monotonic() < end, alive
        time.sleep(0.1)
    Network().close()
    assert left(tag) == []


def running(folder):
    """Command lines of the processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(folder).encode() in word for word in words):
            found.append(b" ".join(words))
    return found


def left(tag):
    """Namespaces and links of a network."""
    places = (Path("/run/netns"), Path("/sys/class/net"))
    return sorted(p.name for place in places for p in place.glob(f"{tag}*"))
