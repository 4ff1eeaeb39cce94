"""Rendered scripts on a real SLURM, with a quick program that honours the launch contract."""

import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import scheduler, slurm_script, slurm_status
from jobs import slurm as backend
from jobs.scheduler import Stage
from jobs.spec import Cluster, Job, JobState, SubmitError
from pipeline.runs.job_record import SubmittedJob, where_of
from pipeline.submission import logs

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.dist]
SMALL = Cluster(scheduler="slurm", cpus_per_node=1, memory_gb=1, lead_seconds=10, retries=1)
TWO = replace(SMALL, nodes=2)


@pytest.fixture
def job(tmp_path, contract_code):
    def make(name, *words):
        run = str(tmp_path / name)
        return Job(id=name, verb="train", arguments=(f"run={run}", *words), run=run, folder=run,
                   cwd=str(tmp_path), code=str(contract_code))  # fmt: skip

    return make


@pytest.fixture(scope="module", autouse=True)
def limited(slurm, tmp_path_factory):
    """Jobs that sleep until their wall limit, deaf to the warning, while the other tests run.

    At the limit one leaves with 75, as if all were saved, the other with 1; the next attempt ends
    well.
    """
    folder = tmp_path_factory.mktemp("limited")
    deaf = folder / "deaf.sh"
    deaf.write_text(
        "#!/bin/bash\ntrap '' USR1\ntrap 'exit $CODE' TERM\n"
        '[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\nsleep 300 & wait\n'
    )
    deaf.chmod(0o755)
    numbers = {}
    far = {"nodelist": "n2"}  # another test loses n1
    for name, code in (("unsaved", "1"), ("saved", "75")):
        run = str(folder / name)
        made = Job(id=name, verb="train", arguments=(), run=run, folder=run, env={"CODE": code})
        number = submit(made, replace(SMALL, time="30", python=str(deaf), sbatch=far))
        numbers[name] = number, made
    for number, _ in numbers.values():
        slurm.wait(lambda n=number: slurm.state(n) == "RUNNING", "a job to run")
        # No limit is shorter than a minute, and SLURM looks at it every 30 s only.
        slurm.run("scontrol", "update", f"jobid={number}", "endtime=now+5")
    return numbers


def submit(made, cluster):
    return backend.submit(made, cluster, slurm_script.render(made, cluster))


def ask(made, cluster):
    return backend.ask(made, cluster, slurm_script.render(made, cluster))


def ended(number, made, seconds=90):
    end = time.monotonic() + seconds
    while (found := slurm_status.status(number, made.folder)).state.live:
        assert time.monotonic() < end, f"{found}\n{output(made)}"
        time.sleep(0.2)
    return found


def output(made):
    return "".join(p.read_text() for p in Path(made.folder, "logs").glob("*.out"))


def steps(made):
    path = Path(made.run, "steps.jsonl")
    return path.read_text().splitlines() if path.exists() else []


def task(made, node):
    """Process id of the job's program on a node, seen from outside its namespaces."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PET_NODE_RANK={node}".encode() in environment and f"run={made.run}".encode() in words:
            return int(path.name)
    raise AssertionError(f"no task of {made.id} on node {node}")


def starts(made):
    return Path(made.run, "starts").read_text().splitlines()


def test_two_nodes_meet_and_finish(slurm, job):
    made = job("ok", "steps=3")
    assert ended(submit(made, TWO), made).state is JobState.SUCCEEDED
    assert starts(made) == ["0 on n1"]


def test_usr1_saves_on_all_nodes_and_goes_on_after_the_requeue(slurm, job):
    made = job("usr1", "steps=30")
    number = submit(made, TWO)
    slurm.wait(lambda: len(steps(made)) > 3, "a few steps")
    slurm.run("scancel", "--batch", "--signal=USR1", number)
    found = ended(number, made)
    assert (found.state, found.restarts) == (JobState.SUCCEEDED, 1)
    assert len(steps(made)) == 30  # no step twice: the second start went on where the first saved
    assert starts(made)[1] != starts(made)[0]


def test_a_crash_is_tried_again_as_often_as_is_allowed(slurm, job):
    saved = job("crash", "steps=4", "crash=2", "crashes=1")
    lost = job("lost", "steps=4", "crash=2", "crashes=9")
    numbers = [submit(saved, TWO), submit(lost, TWO)]
    assert ended(numbers[0], saved).state is JobState.SUCCEEDED
    found = ended(numbers[1], lost)
    assert (found.state, found.restarts) == (JobState.FAILED, 1)
    assert found.reason == "crashed 2 times, last exit 1"


def test_a_log_is_followed_through_a_requeue_to_the_end_of_the_job(slurm, job, capsys):
    made = job("followed", "steps=4", "pause=0.05", "crash=2", "crashes=1")
    number = submit(made, SMALL)
    record = SubmittedJob("followed", "train", made.run, made.folder, number, where_of(SMALL), "")
    logs._files(record, follow=True)
    assert slurm_status.status(number, made.folder).state is JobState.SUCCEEDED
    message = capsys.readouterr().out
    assert "crash 1 of 1 allowed" in message and "the end of 0 at 4" in message
    assert message == output(made)


def test_a_configuration_error_is_not_tried_again(slurm, job):
    made = job("wrong", "exit=78")
    found = ended(submit(made, TWO), made)
    assert (found.state, found.restarts) == (JobState.FAILED, 0)
    assert found.reason == "configuration error, not retried"


def test_an_interpreter_that_no_node_has_is_not_tried_again(slurm, job):
    made = job("nowhere", "steps=1")
    found = ended(submit(made, replace(SMALL, python="/no/such/python")), made)
    assert (found.state, found.restarts) == (JobState.FAILED, 0)
    assert found.reason.startswith("exit 127, not retried") and "/no/such/python" in found.reason


def test_a_crash_that_cannot_be_counted_is_not_tried_again(slurm, job):
    """Every write to a file fails, as on a full disk: it is made, and stays empty."""
    made = job("full", "steps=1")
    full = replace(SMALL, retries=5, setup=["trap '' XFSZ", "ulimit -f 0"])
    found = ended(submit(made, full), made)
    assert (found.state, found.restarts) == (JobState.FAILED, 0)
    assert not steps(made)


def test_a_node_that_cannot_open_the_logs_is_what_status_says(slurm, job):
    made = job("apart", "steps=1")
    number = submit(made, replace(SMALL, sbatch={"hold": None}))
    logs = Path(made.folder, "logs")
    logs.rename(logs.with_name("elsewhere"))
    logs.touch()  # nor can slurmd make the folder
    slurm.run("scontrol", "release", number)
    found = ended(number, made)
    message = f"a node cannot open {logs}: check that the folder is on a shared disk"
    assert (found.state, found.reason, found.restarts) == (JobState.FAILED, message, 0)


def test_a_cancelled_job_saves_first_and_is_not_requeued(slurm, job):
    made = job("cancelled", "steps=300")
    number = submit(made, TWO)
    slurm.wait(lambda: len(steps(made)) > 3, "a few steps")
    backend.cancel(number)
    assert ended(number, made).state is JobState.CANCELLED
    slurm.wait(Path(made.run, "state.json").exists, "the save")
    assert f'"step": {len(steps(made))}}}' in Path(made.run, "state.json").read_text()


def test_an_array_runs_each_element_once_a_few_at_a_time(slurm, job):
    made = job("array")
    elements = tuple((f"run={made.run}/{i}", "steps=2") for i in range(4))
    made = replace(made, arguments=(), elements=elements)
    number = submit(made, replace(SMALL, throttle=2))
    live = []
    while (found := slurm_status.status(number, made.folder)).state.live:
        live.append(sum(s is JobState.RUNNING for s in found.elements.values()))
        time.sleep(0.1)
    assert found.state is JobState.SUCCEEDED and len(found.elements) == 4
    assert 0 < max(live) <= 2
    assert all(len((Path(made.run) / str(i) / "steps.jsonl").read_text().splitlines()) == 2
               for i in range(4))  # fmt: skip


def test_every_element_of_a_long_array_is_known_those_cancelled_before_they_ran_too(slurm, job):
    made = job("gaps")
    made = replace(made, arguments=(), elements=tuple((f"run={made.run}/{i}",) for i in range(80)))
    number = submit(made, replace(SMALL, sbatch={"hold": None}))
    gone: set[int] = set()
    for more in (range(1, 80, 2), range(2, 80, 7)):  # SLURM writes 0-78:2, then every number
        gone |= {*more}
        slurm.run("scancel", f"{number}_[{','.join(map(str, more))}]")
        found = slurm_status.status(number, made.folder)
        assert found.state is JobState.QUEUED
        assert found.elements == {
            str(i): JobState.CANCELLED if i in gone else JobState.QUEUED for i in range(80)
        }
    backend.cancel(number)
    assert ended(number, made).state is JobState.CANCELLED


def test_a_chain_waits_for_success_and_dies_with_a_failure(slurm, job):
    first, second = job("first", "steps=2"), job("second", "steps=1")
    numbers = scheduler.submit(scheduler.render([Stage(first, SMALL), Stage(second, SMALL)]))
    assert ended(numbers[1], second).state is JobState.SUCCEEDED
    bad, never = job("bad", "exit=78"), job("never", "steps=1")
    numbers = scheduler.submit(scheduler.render([Stage(bad, SMALL), Stage(never, SMALL)]))
    assert ended(numbers[1], never).state is JobState.CANCELLED
    assert not Path(never.run, "starts").exists()


def test_secrets_reach_the_job_and_stand_nowhere(slurm, job, tmp_path):
    secrets = tmp_path / "secrets.env"
    secrets.write_text("PLANTED_TOKEN='open sesame'\n")
    secrets.chmod(0o600)
    made = replace(job("secret"), arguments=("-c", ""), verb="train")
    probe = tmp_path / "probe"
    probe.write_text('#!/bin/sh\nprintf %s "$PLANTED_TOKEN" | sha256sum > "$SEEN"\n')
    probe.chmod(0o755)
    cluster = replace(SMALL, secrets_file=str(secrets), python=str(probe))
    made = replace(made, env={"SEEN": f"{tmp_path}/seen"})
    number = submit(made, cluster)
    assert ended(number, made).state is JobState.SUCCEEDED
    expected = subprocess.run(["sha256sum"], input=b"open sesame", capture_output=True).stdout
    assert (tmp_path / "seen").read_bytes() == expected
    secrets.unlink()
    shown = slurm.run("scontrol", "show", "job", number)
    shown += slurm.run("scontrol", "write", "batch_script", number, "-")
    assert "open sesame" not in shown and "PLANTED_TOKEN" not in shown
    grep = subprocess.run(["grep", "-rl", "open sesame", str(tmp_path), str(slurm.root)])
    assert grep.returncode == 1


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (replace(SMALL, partition="gpus"), "invalid partition"),
        (replace(SMALL, gpus_per_node=9), "lower cluster.gpus_per_node"),
        (replace(SMALL, nodes=3), "lower cluster.gpus_per_node, cpus_per_node, memory_gb or nodes"),
        (replace(SMALL, sbatch={"no-such-option": "1"}), "check cluster.sbatch"),
        (replace(SMALL, time="soon"), "time"),
        (replace(SMALL, name="x", setup=["exit 3"], partition="no such"), "invalid partition"),
    ],
)
def test_what_slurm_would_refuse_is_one_line_before_anything_runs(slurm, job, cluster, message):
    stage = Stage(job("refused", "steps=1"), cluster)
    for attempt in (scheduler.ask, scheduler.judge):
        with pytest.raises(SubmitError) as refused:
            attempt(scheduler.render([stage]))
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_slurm_that_does_not_answer_is_one_line_with_what_to_look_at(
    slurm, job, tmp_path, monkeypatch
):
    conf = Path(slurm.root, "slurm.conf").read_text()
    dead = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1\nMessageTimeout=2", conf)
    (tmp_path / "slurm.conf").write_text(dead)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SubmitError, match="check `scontrol ping`") as refused:
        scheduler.judge(scheduler.render([Stage(job("silent", "steps=1"), SMALL)]))
    assert "Unable to contact" in str(refused.value) and "\n" not in str(refused.value)


def test_an_array_that_is_too_long_is_refused_naming_the_limit(slurm, job):
    made = replace(job("long"), arguments=(), elements=(("steps=1",),) * 1002)
    with pytest.raises(SubmitError) as refused:
        scheduler.submit(scheduler.render([Stage(made, SMALL)]))
    message = str(refused.value)
    assert "MaxArraySize" in message and "lower cluster.tasks" in message and "\n" not in message


def test_asking_leaves_nothing_in_the_queue_and_looks_for_the_interpreter_on_a_node(slurm, job):
    made = job("asked", "steps=1")
    message = ask(made, SMALL)
    assert "to start at" in message[0] and "a node has Python and torch" in message[1]
    with pytest.raises(SubmitError, match="/no/such/python"):
        ask(made, replace(SMALL, python="/no/such/python"))
    assert "asked" not in slurm.run("squeue", "-h")


def test_asking_names_the_memory_that_a_job_gets_without_a_key(slurm, job):
    made, cluster = job("default", "steps=1"), replace(SMALL, memory_gb=None)
    line = "memory: cluster.memory_gb is not set, so the site's default applies: "
    assert f"{line}all memory of the node" in ask(made, cluster)
    slurm.run("scontrol", "update", "partitionname=spot", "defmempercpu=77")
    slurm.run("scontrol", "update", "partitionname=main", "defmempernode=99")
    try:
        assert f"{line}99 MB per Node" in ask(made, cluster)  # `main` is the default partition
        assert f"{line}77 MB per CPU" in ask(made, replace(cluster, partition="spot"))
    finally:
        for name in ("spot", "main"):
            slurm.run("scontrol", "update", f"partitionname={name}", "defmempernode=0")


def test_a_waiting_job_says_why(slurm, job):
    made = job("big", "steps=1")
    number = submit(made, replace(SMALL, sbatch={"begin": "now+1hour"}))
    found = slurm_status.status(number, made.folder)
    assert found.state is JobState.QUEUED and found.reason.startswith("BeginTime: not before")
    backend.cancel(number)
    assert ended(number, made).state is JobState.CANCELLED


def test_a_job_that_slurm_has_forgotten_is_known_by_its_note(slurm, job):
    made = job("old", "steps=1")
    number = submit(made, SMALL)
    assert ended(number, made).state is JobState.SUCCEEDED
    (Path(made.folder) / "logs" / "state-999999").write_text(
        "FAILED crashed 2 times, last exit 1\n"
    )
    found = slurm_status.status("999999", made.folder)
    assert (found.state, found.reason) == (JobState.FAILED, "crashed 2 times, last exit 1")
    assert slurm_status.status("999998", made.folder).state is JobState.UNKNOWN


def test_a_forgotten_array_is_known_by_the_notes_of_all_its_elements(slurm, job):
    made = job("forgotten")
    elements = ((f"run={made.run}/0", "exit=78"), (f"run={made.run}/1", "steps=1"))
    made = replace(made, arguments=(), elements=elements)
    number = submit(made, SMALL)
    logs = Path(made.folder, "logs")
    assert {p.name for p in logs.glob("state-*")} >= {f"state-{number}_{i}" for i in (0, 1)}
    live = ended(number, made)
    for i in (0, 1):
        (logs / f"state-{number}_{i}").rename(logs / f"state-999999_{i}")
    found = slurm_status.status("999999", made.folder)
    assert (found.state, found.reason) == (JobState.FAILED, "configuration error, not retried")
    assert found.elements == live.elements == {"0": JobState.FAILED, "1": JobState.SUCCEEDED}


def test_a_task_that_was_killed_is_named_and_not_what_its_peer_says(slurm, job):
    made = job("killed", "steps=300")
    number = submit(made, replace(TWO, retries=0))
    slurm.wait(lambda: len(steps(made)) > 3, "a few steps")
    os.kill(task(made, node=1), signal.SIGKILL)
    found = ended(number, made)
    assert found.state is JobState.FAILED
    assert found.reason == "crashed 1 times, last exit 137, n2: task 1: Killed"
    assert "srun: error: n1: task 0: Exited with exit code 1" in output(made)


def test_a_job_whose_batch_host_is_lost_goes_on_from_what_was_saved(slurm, job):
    made = job("host", "steps=30")
    number = submit(made, replace(TWO, retries=0))
    slurm.wait(lambda: len(steps(made)) > 3, "a few steps")
    assert "BatchHost=n1" in slurm.run("scontrol", "show", "job", number)
    slurm.lose("n1")
    slurm.wait(lambda: slurm.state(number) == "PENDING", "the requeue")
    slurm.restore("n1")
    found = ended(number, made)
    assert (found.state, found.restarts) == (JobState.SUCCEEDED, 1)
    assert not list(Path(made.folder, "logs").glob("failures-*"))  # no crash was counted


def test_a_wall_limit_without_a_save_is_a_crash_and_one_with_a_save_is_none(slurm, limited):
    counted = {}
    for name, (number, made) in limited.items():
        found = ended(number, made, seconds=150)
        assert (found.state, found.restarts) == (JobState.SUCCEEDED, 1)
        counted[name] = (Path(made.folder) / "logs" / f"failures-{number}").exists()
    assert counted == {"unsaved": True, "saved": False}
