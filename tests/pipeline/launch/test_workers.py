"""The launcher's side of its workers, with real processes: signals, deaths, exit classes, words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.launch.topology import place
from pipeline.launch.workers import memory_mb, outcome, supervise
from pipeline.runs.checkpoints import images_saved
from shards import store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]


def test_memory_of_a_group_is_counted_while_one_of_it_ends(monkeypatch):
    """Of the children that the system lists, one has ended when its memory is read."""
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    gone, alive = (subprocess.Popen(sleep, stdout=subprocess.PIPE) for _ in range(2))
    for child in (gone, alive):
        child.stdout.readline()
    listed = [psutil.Process(child.pid) for child in (gone, alive)]
    gone.kill()
    gone.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: listed)
    try:
        expected = sum(psutil.Process(pid).memory_info().rss for pid in (os.getpid(), alive.pid))
        assert memory_mb(os.getpid()) == pytest.approx(expected / 1e6, rel=0.05)
        assert memory_mb(gone.pid) == 0
    finally:
        alive.kill()
        alive.wait()


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
        ([-15, -15], 75),
        ([-10, -15], 75),
        ([75, -15], 75),
    ],
)
def test_the_nodes_status_says_saved_only_where_all_saved(statuses, status):
    assert outcome(statuses, [s for s in statuses if s not in (0, 75)]) == status


def test_of_a_group_that_had_not_begun_a_failure_stays_one_unless_it_followed_from_a_stop():
    assert outcome([1, -15], first=[1]) == 1  # ended for the other's sake
    assert outcome([1, -15], first=[-15]) == 75
    assert outcome([1, -15], first=[1, -15]) == 1
    assert outcome([1, -15], first=[1, -15], asked=True) == 75
    assert outcome([1, -9], first=[1], asked=True) == 1


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
        f"from pipeline.training.launcher import place; import sys; "
        f"from pipeline.launch.workers import supervise; "
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


SAVES = f"""
sys.path.insert(0, {str(ROOT)!r})
from pipeline.common.signals import stop_requests
with stop_requests() as stop:
    mark.with_name('ready' + os.environ['RANK']).touch()
    while not stop:
        time.sleep(0.01)
mark.with_name('reason' + os.environ['RANK']).write_text(stop.reason)
sys.exit(75)
"""


STOPS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_the_launcher_lets_every_worker_save_and_say_what_was_asked(tmp_path, number):
    process, _ = launcher(tmp_path, 2, SAVES)
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 75
    reasons = [(tmp_path / f"reason{rank}").read_text() for rank in range(2)]
    assert reasons == [number.name] * 2


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_before_there_is_anything_to_save_is_no_failure(tmp_path, number, capfd):
    """To the launcher and, as a terminal does, to its workers."""
    process, pids = launcher(tmp_path, 2, "time.sleep(60)")
    for pid in [process.pid, *pids]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    assert process.wait(30) == 75
    assert capfd.readouterr().err == f"stopped ({number.name}) before there was anything to save\n"


def test_a_signal_to_one_worker_alone_before_it_listens_is_no_failure(tmp_path, capfd):
    process, pids = launcher(tmp_path, 2, "time.sleep(60)")
    os.kill(pids[1], signal.SIGUSR1)
    assert process.wait(30) == 75
    assert "stopped (SIGUSR1)" in capfd.readouterr().err


def test_workers_die_with_their_launcher(tmp_path):
    process, pids = launcher(tmp_path, 2, "time.sleep(60)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its launcher"
        time.sleep(0.05)


def test_a_worker_whose_launcher_died_while_it_was_started_ends(tmp_path):
    """The launcher is killed between its fork and what binds its child to it."""
    code = (
        "import os, signal, time\n"
        "from pipeline.launch import workers\n"
        "def killed():\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    time.sleep(1)\n"  # until another is the parent
        "workers.die_with_parent = killed\n"
        f"workers.supervise(['touch', {str(tmp_path / 'trained')!r}], [{{'RANK': '0'}}])\n"
    )
    assert subprocess.run(python(code), cwd=ROOT).returncode == -signal.SIGKILL
    time.sleep(2)
    assert not (tmp_path / "trained").exists()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_every_worker_says_is_kept_in_the_runs_log_and_still_shown(tmp_path, capfd):
    code = "import os, sys; print('out', os.environ['RANK']); sys.stderr.write('err\\n')"
    log = tmp_path / "run" / "logs" / "node-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("an attempt before\n")
    assert supervise(python(code), place({}, 2).workers, str(log)).status == 0
    lines = log.read_text().splitlines()
    assert lines[0] == "an attempt before"
    assert sorted(lines[1:]) == ["err", "err", "out 1"]
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["out 0"]
    assert sorted(shown.err.splitlines()) == ["err", "err", "out 1"]


@pytest.mark.s3
def test_a_log_in_a_bucket_goes_on_behind_what_was_there(bucket):
    log = store.join(bucket, "run/logs/node-0.log")
    for attempt in ("first", "second"):
        code = f"import sys; print({attempt!r}, file=sys.stderr)"
        assert supervise(python(code), place({}, 1).workers, log).status == 0
    assert store.read(log) == b"first\nsecond\n"


@pytest.mark.slow
@pytest.mark.s3
def test_a_pod_that_is_lost_after_a_checkpoint_has_left_its_log(bucket, small_set, tmp_path):
    """In a bucket, where logs that nobody asks for are here never published before the end."""
    run = store.join(bucket, "run")
    pod = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "JOB_COMPLETION_INDEX": "0",
           "LACUNA_PODS": f"{run}/logs/pod-", "XDG_CACHE_HOME": str(tmp_path),
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    program = (
        "import sys; from pipeline.launch import output; output.PUBLISH_EVERY = 1e9\n"
        "from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [word for word in TINY if not word.startswith("checkpoint")]
    words += [f"data.url={small_set}", f"run={run}", "max_images=8000", "checkpoint.every_images=8"]
    log, end = store.join(run, "logs/pod-0.log"), time.monotonic() + 120
    process = subprocess.Popen([*python(program), "train", *words], cwd=ROOT,
                               env={**os.environ, **pod}, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        while not (images_saved(run) and store.exists(log)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    assert ", 8000 images: " in store.read(log).decode()


def test_the_error_that_came_first_is_reported_not_what_followed_from_it(tmp_path, capfd):
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from pipeline.launch.output import record_error\n"
        "if os.environ['RANK'] == '1':\n"
        "    record_error('rank 1: the disk is full')\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "signal.pause()\n"
        "record_error('rank 0: connection closed by peer')\n"
        "sys.exit(1)\n"
    )
    log = tmp_path / "node-0.log"
    ended = supervise(python(code), place({}, 2).workers, str(log))
    assert ended == (1, "rank 1: the disk is full")
    assert log.read_text() == capfd.readouterr().err == "rank 1: the disk is full\n"


def test_a_worker_that_is_killed_is_named_with_its_signal():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ended = supervise(python(code), place({}, 1).workers)
    assert ended.status == 1 and "rank 0 on " in ended.error and "SIGKILL" in ended.error


@pytest.mark.slow
def test_a_failed_run_keeps_its_error_until_it_succeeds(train, tmp_path):
    run = tmp_path / "run"
    wrong = run / "checkpoints" / "000000000008"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("a file where a folder goes")
    (run / "run.json").write_text('{"id": "announced"}')
    words = ("max_images=8", "processes=2")
    done = train(run, *words)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "rank " in line and "000000000008" in line, done.stderr
    assert json.loads((run / "run.json").read_text())["error"] == line
    assert line in (run / "logs" / "node-0.log").read_text().splitlines()
    wrong.unlink()
    done = train(run, *words)
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "run.json").read_text())
    assert "error" not in facts and re.fullmatch(r"[0-9a-f]{40}", facts["commit"])
    assert "8 images: val/psnr" in (run / "logs" / "node-0.log").read_text()
