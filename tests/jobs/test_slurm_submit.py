"""`submit` with a real SLURM, stopped or started twice at the worst moments; jobs stay held."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
HELD = ["cluster=slurm", "cluster.code=image", "cluster.cpus_per_node=1", "cluster.memory_gb=1",
        "cluster.sbatch={hold: null}"]  # fmt: skip
# What comes between SLURM's yes and its number: each is given to `submit` by the sbatch it calls.
SBATCH = """\
#!/bin/bash
[ "$1" = --test-only ] && exec {real} "$@"
{before}
message=$({real} "$@")
{after}
echo "$message"
"""


@pytest.fixture
def start(slurm, cli, photograph_folder, tmp_path):
    """`start(out, before=, after=)`: a submission of `shard`, in a session of its own."""
    real, programs = shutil.which("sbatch"), tmp_path / "programs"
    programs.mkdir()

    def begin(out, before="", after=""):
        (programs / "sbatch").write_text(SBATCH.format(real=real, before=before, after=after))
        (programs / "sbatch").chmod(0o755)
        home = {"XDG_CACHE_HOME": f"{cli.cwd}/cache", "XDG_CONFIG_HOME": f"{cli.cwd}/config"}
        words = ["shard", f"source={photograph_folder}", f"out={out}", "data.min_side=64", *HELD]
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "submit", *words, "--json"],
            cwd=cli.cwd,
            env={**os.environ, **home, "PYTHONPATH": str(cli.code), "PYTHONSAFEPATH": "1",
                 "PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip

    return begin


@pytest.fixture
def queued(slurm, cli, start):
    """`queued()`: numbers and names in the queue; it is empty again afterwards."""

    def ask():
        return [tuple(line.split()) for line in slurm.run("squeue", "-ho", "%F %j").splitlines()]

    assert ask() == []
    yield ask
    slurm.run("scancel", "--user=root")
    slurm.wait(lambda: ask() == [], "an empty queue")


def test_of_two_submissions_at_once_one_is_taken_and_the_other_told_whose_it_is(cli, start, queued):
    both = [start("sets/twice", before="sleep 2") for _ in range(2)]
    message = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], message
    ((number, name),) = queued()
    first, second = sorted(zip(both, message), key=lambda pair: pair[0].returncode)
    assert json.loads(first[1][0])["jobs"][0]["number"] == number
    said = second[1][1].strip().splitlines()[-1]
    assert f"pid {first[0].pid}" in said or f"as slurm job {number}" in said
    kept = {path.name for path in (cli.cwd / "runs" / name).iterdir()}
    assert kept == {"config.yaml", "job.sbatch", "jobs.json", "logs"}
    assert cli.status(name)["number"] == number


def test_what_slurm_took_from_a_submission_that_was_killed_is_found_by_its_name(
    cli, start, queued, slurm
):
    killed = start("sets/killed", after="kill -9 $PPID")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    ((number, name),) = queued()
    message = cli.status(name)
    assert (message["number"], message["state"]) == (number, "QUEUED")
    again = start("sets/killed")
    assert f"job {number}" in again.communicate(timeout=120)[1] and again.returncode == 2
    assert queued() == [(number, name)]
    cli("cancel", name)
    slurm.wait(lambda: queued() == [], "the cancellation")
    assert cli.status(name)["state"] == "CANCELLED"
    after = start("sets/killed")
    (job,) = json.loads(after.communicate(timeout=120)[0])["jobs"]
    assert json.loads((cli.cwd / "runs" / name / "jobs.json").read_text())["before"] == [number]
    assert queued() == [(job["number"], name)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_a_stop_after_slurm_took_the_job_leaves_it_with_its_record(cli, start, queued, number):
    whole = "-- -$(ps -o pgid= $PPID | tr -d ' ')"  # as a terminal does it
    stopped = start(f"sets/stopped-{number}", after=f"kill -{int(number)} {whole}; sleep 0.3")
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode in (130, 143)
    ((job, name),) = queued()
    assert f"`cancel {name}` removes it" in said
    folder = cli.cwd / "runs" / name
    assert json.loads((folder / "jobs.json").read_text())["number"] == job
    assert (folder / "config.yaml").exists()
    assert cli.status(name)["state"] == "QUEUED"
