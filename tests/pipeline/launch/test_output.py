"""What a pod's first process leaves behind, with the real command line in a pod's environment."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY

POD = {"PET_NNODES": "1", "PET_NODE_RANK": "0", "JOB_COMPLETION_INDEX": "3"}


@pytest.fixture
def pod(verb, tmp_path):
    """`pod(words…)`: one start of the pod; the finished process, its log and its last word."""

    def call(*words):
        env = {**POD, "LACUNA_PODS": f"{tmp_path}/logs/pod-"}
        done = verb(*words, env=env, process=True)
        logs = tmp_path / "logs"
        return done, (logs / "pod-3.log").read_text(), (logs / "pod-3.state").read_text()

    return call


def test_output_and_success_of_any_verb_outlast_the_pod(pod, tmp_path):
    done, log, state = pod("masks", f"out={tmp_path}/m", "size=32", "per_bucket=1")
    assert done.returncode == 0, done.stderr
    assert log and log == done.stderr  # stdout too goes where a pod's log is read
    assert state == "SUCCEEDED\n"
    again, log, _ = pod("masks", f"out={tmp_path}/m", "size=32", "per_bucket=1")
    assert log == done.stderr + again.stderr


def test_a_verb_that_saves_nothing_ends_when_its_pod_is_stopped_and_says_so(tmp_path):
    words = ["masks", f"out={tmp_path}/m", "per_bucket=100000"]
    state = tmp_path / "logs" / "pod-3.state"
    started = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        env={**os.environ, **POD, "LACUNA_PODS": f"{tmp_path}/logs/pod-"},
        stderr=subprocess.DEVNULL,
    )
    while not state.exists():
        assert started.poll() is None
        time.sleep(0.05)
    started.terminate()
    assert started.wait(60) == 143
    assert state.read_text() == "INTERRUPTED stopped on request\n"


def test_what_a_verb_refuses_is_its_last_word(pod):
    done, log, state = pod("shard", "source=/no/such/folder", "out=/no/such/out")
    assert done.returncode == 78
    assert state.startswith("FAILED pipeline shard: ") and "/no/such/folder" in state
    assert state.removeprefix("FAILED ") in log


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (("batch=7", "accumulate=2"), "batch=7 is not divisible"),  # by the launcher's preflight
        (("data.validate=test",), "data.validate=test: the best"),  # by the checks before it
        (("masks.low=0.6", "masks.high=0.1"), "masks.low=0.6 is not below"),
    ],
)
def test_a_training_that_is_refused_before_it_starts_says_so_in_run_json_too(
    pod, small_set, tmp_path, wrong, error
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("batch: 7")  # as `submit` leaves it
    done, log, state = pod("train", *TINY, f"data.url={small_set}", f"run={tmp_path}/run", *wrong)
    assert done.returncode == 78
    message = json.loads((tmp_path / "run" / "run.json").read_text())["error"]
    assert error in message and message in log and message in state
