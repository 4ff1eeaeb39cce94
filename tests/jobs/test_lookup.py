"""A job whose number was never written down, found again: on this machine, by real scripts."""

import time

import pytest

from jobs import local, scheduler
from jobs.scheduler import Stage
from jobs.spec import Cluster, Job, JobState


@pytest.fixture
def begun(tmp_path):
    """`begun(script)`: a job that runs here, and its number."""

    def begin(script):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        run = str(tmp_path / "run")
        job = Job(id="run", verb="train", arguments=(), run=run, folder=run)
        return job, local.submit(job, local.render(job, Cluster(python=str(program), retries=0)))

    return begin


def found(job, before=()):
    (sought,) = scheduler.search_keys(scheduler.render([Stage(job, Cluster())]))
    return scheduler.find(sought, job.folder, before, Cluster())


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_script_that_runs_is_found_by_its_note_and_can_be_stopped(begun):
    job, number = begun("sleep 60")
    assert found(job) == number
    local.cancel(found(job))
    wait(lambda: not local.status(number, job.folder).state.live)
    assert local.status(found(job), job.folder).state is JobState.CANCELLED


def test_earlier_submissions_are_not_taken_for_the_last(begun):
    job, number = begun("exit 0")
    assert found(job) and found(job, before=[number]) == ""


def test_a_process_that_only_has_the_number_of_a_script_is_left_alone(begun, tmp_path):
    job, number = begun("exit 0")
    wait(lambda: not local.status(number, job.folder).state.live)
    stranger = tmp_path / "run" / "logs" / "state-1"  # somebody runs as process 1
    stranger.write_text("RUNNING\n")
    assert found(job, before=[number]) == "1_gone"
    assert local.status("1_gone", job.folder).state is JobState.FAILED
