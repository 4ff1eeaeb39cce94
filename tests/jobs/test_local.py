"""Jobs on this machine, run for real with a program that honours the launch contract."""

import os
import shutil
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import local, scheduler
from jobs.scheduler import Stage
from jobs.spec import Cluster, Job, JobState, SubmitError

CONTRACT = Path(__file__).resolve().parents[1] / "support" / "contract.py"
ALONE = {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def job(tmp_path):
    """`job(name, words…)`: the stand-in for training as a job of this machine."""
    code = tmp_path / "code" / "pipeline"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    shutil.copy(CONTRACT, code / "__main__.py")

    def make(name, *words):
        run = str(tmp_path / name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env = {**ALONE, "PET_MASTER_PORT": str(free.getsockname()[1])}
        return Job(id=name, verb="train", arguments=(f"run={run}", *words), run=run, folder=run,
                   cwd=str(tmp_path), code=str(code.parent), env=env)  # fmt: skip

    return make


def ended(number, folder, seconds=30):
    end = time.monotonic() + seconds
    while (found := local.status(number, folder)).state.live:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def steps(made):
    return Path(made.run, "steps.jsonl").read_text().count("\n")


def test_a_job_runs_detached_and_succeeds(job):
    made = job("a", "steps=3", "pause=0.01")
    number = local.submit(made, local.render(made, Cluster()))
    assert ended(number, made.folder).state is JobState.SUCCEEDED
    assert steps(made) == 3


def test_a_crash_is_tried_again_and_goes_on(job):
    made = job("a", "steps=4", "pause=0.01", "crash=2", "crashes=2")
    assert (
        ended(local.submit(made, local.render(made, Cluster(retries=2))), made.folder).state
        is JobState.SUCCEEDED
    )
    assert Path(made.run, "starts").read_text().count("\n") == 3


def test_too_many_crashes_fail_with_their_number(job):
    made = job("a", "steps=4", "pause=0.01", "crash=2", "crashes=9")
    found = ended(local.submit(made, local.render(made, Cluster(retries=1))), made.folder)
    assert (found.state, found.reason) == (JobState.FAILED, "crashed 2 times, last exit 1")


def test_a_configuration_error_is_not_tried_again(job):
    made = job("a", "exit=78")
    found = ended(local.submit(made, local.render(made, Cluster())), made.folder)
    assert (found.state, found.reason) == (JobState.FAILED, "configuration error, not retried")


def test_a_cancelled_job_saves_and_is_cancelled_and_submitting_it_again_goes_on(job):
    made = job("a", "steps=40", "pause=0.05")
    number = local.submit(made, local.render(made, Cluster()))
    while not Path(made.run, "steps.jsonl").exists():
        time.sleep(0.02)
    local.cancel(number)
    assert ended(number, made.folder).state is JobState.CANCELLED
    saved = steps(made)
    assert 0 < saved < 40
    assert (
        ended(local.submit(made, local.render(made, Cluster())), made.folder).state
        is JobState.SUCCEEDED
    )
    assert steps(made) == 40
    assert Path(made.run, "starts").read_text().splitlines()[1].startswith(f"{saved} ")


def test_a_script_that_is_killed_alone_takes_along_what_it_runs(job):
    made = job("a", "steps=4000")
    number = local.submit(made, local.render(made, Cluster()))
    while not Path(made.run, "starts").exists():
        time.sleep(0.02)
    mine = [p for p in Path("/proc").glob("[0-9]*/cmdline") if f"run={made.run}" in words_of(p)]
    assert len(mine) == 1
    os.kill(int(number.partition("_")[0]), signal.SIGKILL)
    assert ended(number, made.folder).state is JobState.FAILED
    end = time.monotonic() + 30
    while f"run={made.run}" in words_of(mine[0]):
        assert time.monotonic() < end, "the training goes on"
        time.sleep(0.02)


def words_of(path):
    try:
        return path.read_text().split("\0")
    except OSError:
        return []


def test_an_interpreter_that_is_not_there_is_not_tried_again(job):
    made = job("a", "steps=1")
    found = ended(
        local.submit(made, local.render(made, Cluster(python="/no/such/python"))), made.folder
    )
    assert found.state is JobState.FAILED
    assert found.reason == "exit 127, not retried: missing or not executable: /no/such/python"


def test_a_killed_job_is_seen_to_be_dead(job):
    made = job("a", "steps=400")
    number = local.submit(made, local.render(made, Cluster()))
    while not Path(made.run, "starts").exists():
        time.sleep(0.02)
    os.killpg(os.getpgid(int(number.partition("_")[0])), signal.SIGKILL)
    found = ended(number, made.folder)
    assert (found.state, found.reason) == (JobState.FAILED, "the process was killed")
    with pytest.raises(SubmitError, match="has already ended"):
        local.cancel(number)


def test_a_chain_runs_in_order_and_stops_at_a_failure(job):
    first, second = job("a", "steps=3", "pause=0.1"), job("b", "steps=1", "pause=0.01")
    numbers = scheduler.submit(
        scheduler.render([Stage(first, Cluster()), Stage(second, Cluster())])
    )
    assert not Path(second.run, "starts").exists()
    assert ended(numbers[1], second.folder).state is JobState.SUCCEEDED
    assert local.status(numbers[0], first.folder).state is JobState.SUCCEEDED
    bad, never = job("c", "exit=78"), job("d", "steps=1")
    numbers = scheduler.submit(scheduler.render([Stage(bad, Cluster()), Stage(never, Cluster())]))
    assert ended(numbers[1], never.folder).state is JobState.CANCELLED
    assert not Path(never.run, "starts").exists()


def test_an_array_runs_its_elements(job):
    made = job("a")
    elements = tuple((f"run={made.run}/{i}", "steps=1", "pause=0") for i in range(2))
    made = replace(made, arguments=(), elements=elements)
    assert (
        ended(local.submit(made, local.render(made, Cluster())), made.folder).state
        is JobState.SUCCEEDED
    )
    assert [Path(made.run, str(i), "state.json").exists() for i in (0, 1)] == [True, True]


# Row 41
@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "$HOME", "100%j", "`x`;&|", "é\\*~"])
def test_the_snapshot_runs_whatever_its_path_and_surroundings(tmp_path, monkeypatch, name):
    code = tmp_path / name / "code"
    for place in (code, tmp_path, tmp_path / "inherited"):
        (place / "pipeline").mkdir(parents=True)
        (place / "pipeline" / "__init__.py").touch()
        text = "import os, sys; open(sys.argv[2], 'w').write(os.path.abspath(__file__))"
        (place / "pipeline" / "__main__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "inherited"))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    folder = str(tmp_path / name)
    made = Job(id="a", verb="train", arguments=(f"{folder}/ran",), run=folder, folder=folder,
               cwd=str(tmp_path), code=str(code))  # fmt: skip
    assert (
        ended(local.submit(made, local.render(made, Cluster())), folder).state is JobState.SUCCEEDED
    )
    assert Path(folder, "ran").read_text() == f"{code}/pipeline/__main__.py"
