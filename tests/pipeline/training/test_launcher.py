"""The launcher's place in a job."""

import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.common.errors import ConfigError
from pipeline.launch.topology import Place, place
from pipeline.runs.checkpoints import images_saved
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
PET = {
    "PET_NNODES": "3",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "n1",
    "PET_MASTER_PORT": "29400",
}


def test_a_node_reads_torchruns_variables():
    here = place(PET, 1)
    assert here == Place(3, 2, 4, "n1", 29400)
    environment = here.workers[1]
    assert environment["RANK"] == "9" and environment["WORLD_SIZE"] == "12"
    assert environment["LOCAL_RANK"] == "1" and environment["MASTER_ADDR"] == "n1"


def test_ranks_of_all_nodes_are_each_number_once():
    places = [place({**PET, "PET_NODE_RANK": str(node)}, 1) for node in range(3)]
    ranks = [int(worker["RANK"]) for here in places for worker in here.workers]
    assert sorted(ranks) == list(range(12))


def test_a_node_rank_that_is_not_a_number_is_refused():
    with pytest.raises(ConfigError, match="PET_"):
        place({**PET, "PET_NODE_RANK": "first"}, 1)


def started(*words, **environment):
    """`train` in a process group of its own, as in a terminal; its messages readable."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_before_workers_start_is_no_failure(tmp_path, number):
    """While the launcher asks a bucket that does not answer for the set."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        process = started(
            "data.url=s3://bucket/set",
            f"run={tmp_path}/run",
            FSSPEC_S3_ENDPOINT_URL=f"http://127.0.0.1:{deaf.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="nobody",
            AWS_SECRET_ACCESS_KEY="nothing",
        )
        deaf.settimeout(60)
        asked = deaf.accept()[0]
        os.killpg(process.pid, number)
        output = process.communicate(timeout=60)[1]
        asked.close()
    assert process.returncode == 75
    assert output == f"stopped ({number.name}) before training began\n"


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    ("number", "whom", "delay"),
    [
        (signal.SIGINT, "all", 0),
        (signal.SIGTERM, "launcher", 1),
        (signal.SIGUSR1, "worker", 1),
        (signal.SIGUSR1, "launcher", 2.5),
    ],
)
def test_a_stop_at_any_moment_of_the_start_loses_nothing_and_is_no_failure(
    small_set, tmp_path, number, whom, delay
):
    words = [*TINY, f"data.url={small_set}", f"run={tmp_path}/run", "max_images=100000"]
    process = started(*words, "processes=2")
    try:
        while len(workers := psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
        if whom == "all":
            os.killpg(process.pid, number)
        else:
            (process if whom == "launcher" else workers[1]).send_signal(number)
        output = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert "Traceback" not in output and "Interrupt" not in output
    assert f"stopped ({number.name}) before training began" in output or ": saved at " in output


NOHUP = "trap '' HUP; "  # as `nohup` does, which also redirects what would go to a terminal


# Row 52
@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "hang_up", "status"),
    [("", "kill", 75), ("", "close", 75), (NOHUP, "close", 0)],
)
def test_a_run_saves_when_its_terminal_is_closed_and_under_nohup_ends(
    small_set, tmp_path, before, hang_up, status
):
    """In a terminal of its own, whose closing also makes each write to it fail."""
    run = tmp_path / "run"
    words = [*TINY, f"data.url={small_set}", f"run={run}", "max_images=240", "processes=1"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.environ["OMP_NUM_THREADS"] = "1"
        command = shlex.join([sys.executable, "-m", "pipeline", "train", *words])
        os.execv("/bin/sh", ["sh", "-c", f"{before}exec {command}"])
    os.set_blocking(terminal, False)
    end = time.monotonic() + 120
    while not (log := run / "steps.jsonl").exists() or not log.read_text():
        with suppress(BlockingIOError):
            os.read(terminal, 65536)
        assert time.monotonic() < end
        time.sleep(0.02)
    if hang_up == "kill":
        os.kill(pid, signal.SIGHUP)
    else:
        os.close(terminal)
    left, how = 0, 0
    while not left:
        with suppress(OSError):
            os.read(terminal, 65536)
        assert time.monotonic() < end
        left, how = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(how) == status
    saved = images_saved(str(run))
    assert saved == 240 if before else 0 < saved < 240
