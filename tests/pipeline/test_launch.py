"""The launcher with real processes: places, signals, deaths, exit classes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.compose import ConfigError
from pipeline.launch import Place, place
from pipeline.supervise import outcome, supervise

ROOT = Path(__file__).resolve().parents[2]
PET = {
    "PET_NNODES": "3",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "n1",
    "PET_MASTER_PORT": "29400",
}


def test_a_node_takes_its_place_from_torchruns_names():
    here = place(PET, 1)
    assert here == Place(3, 2, 4, "n1", 29400)
    environment = here.worker(1)
    assert environment["RANK"] == "9" and environment["WORLD_SIZE"] == "12"
    assert environment["LOCAL_RANK"] == "1" and environment["MASTER_ADDR"] == "n1"


def test_ranks_of_all_nodes_are_each_number_once():
    places = [place({**PET, "PET_NODE_RANK": str(node)}, 1) for node in range(3)]
    ranks = [int(p.worker(local)["RANK"]) for p in places for local in range(p.processes)]
    assert sorted(ranks) == list(range(12))


def test_a_place_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="PET_"):
        place({**PET, "PET_NODE_RANK": "first"}, 1)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([0, 75], 75),
        ([1, -15], 1),
        ([75, -9], 1),
        ([78, -15], 78),
        ([1, 75], 1),
    ],
)
def test_the_nodes_status_says_saved_only_where_all_saved(statuses, status):
    assert outcome(statuses) == status


def python(code):
    return [sys.executable, "-c", code]


def test_a_worker_that_fails_ends_the_others():
    code = "import os, time, sys; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    began = time.monotonic()
    ended = supervise(python(code), place({}, 2).workers)
    assert ended.status == 1 and "rank 1" in ended.error and "exit status 3" in ended.error
    assert time.monotonic() - began < 30


def launcher(tmp_path, workers, code):
    """A launcher of `workers` in a process of its own; each worker leaves its pid in a file."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, pathlib, signal, sys, time\n"
        f"mark = pathlib.Path({str(tmp_path)!r}, 'pid' + os.environ['RANK'])\n"
        f"mark.write_text(str(os.getpid()))\n"
        f"{code}\n"
    )
    start = (
        f"from pipeline.launch import place; from pipeline.supervise import supervise; import sys; "
        f"command = [sys.executable, {str(script)!r}]; "
        f"sys.exit(supervise(command, place({{}}, {workers}).workers).status)"
    )
    process = subprocess.Popen(python(start), cwd=ROOT)
    pids = [tmp_path / f"pid{rank}" for rank in range(workers)]
    deadline = time.monotonic() + 30
    while not all(p.exists() and p.read_text() for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, [int(p.read_text()) for p in pids]


SAVES = (
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "pathlib.Path(__file__).with_name('ready' + os.environ['RANK']).touch()\n"
    "time.sleep(60)"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_launcher_lets_every_worker_save(tmp_path, number):
    process, _ = launcher(tmp_path, 2, SAVES)
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 75


def test_workers_die_with_their_launcher(tmp_path):
    process, pids = launcher(tmp_path, 2, "time.sleep(60)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its launcher"
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
