"""What is read of a job's logs."""

import os
import subprocess
import sys
from types import SimpleNamespace

from pipeline.runs.job_record import SubmittedJob
from pipeline.submission import logs

SLURM = {"scheduler": "slurm", "context": None, "namespace": None, "queue": None, "kind": "job"}


def record(folder):
    (folder / "logs").mkdir(parents=True)
    return SubmittedJob("a", "train", str(folder), str(folder), "7", SLURM, "2026-01-01T00:00:00Z")


def test_what_a_full_disk_left_of_an_error_is_not_read(tmp_path):
    made = record(tmp_path / "a")
    (tmp_path / "a" / "logs" / "error-7-0").touch()
    (tmp_path / "a" / "logs" / "error-7-1").write_text("12.5 rank 1: no space left\n")
    (tmp_path / "a" / "logs" / "error-7-2").write_text("half")
    assert logs.errors(made) == [(12.5, "rank 1: no space left")]


def test_an_error_that_cannot_be_written_leaves_the_one_before(tmp_path):
    """Every write to a file fails, as on a full disk."""
    made = record(tmp_path / "a")
    kept = tmp_path / "a" / "logs" / "error-7"
    (tmp_path / "a" / "logs" / "error-7-0").write_text("12.5 rank 1: no space left\n")
    program = "from pipeline.launch.output import record_error; record_error('another')"
    environment = {**os.environ, "PET_NNODES": "1", "LACUNA_ERRORS": str(kept)}
    for limit, message in (("0", "rank 1: no space left"), ("unlimited", "another")):
        subprocess.run(
            ["bash", "-c", f"trap '' XFSZ; ulimit -f {limit}; exec \"$@\"", "-",
             sys.executable, "-B", "-c", program], env=environment, check=True)  # fmt: skip
        assert [line for _, line in logs.errors(made)] == [message]


def test_a_log_is_followed_without_asking_the_scheduler_each_time(tmp_path, monkeypatch, capsys):
    """A scontrol that counts, and a job that writes a line at each of our looks."""
    made = record(tmp_path / "a")
    output = tmp_path / "a" / "logs" / "slurm-7.out"
    output.touch()
    (tmp_path / "scontrol").write_text(
        '#!/bin/bash\necho x >> "${0%/*}/asked"\n'
        'read -r word < "${0%/*}/a/logs/state-7"\n'
        '[ "$word" = RUNNING ] || word=COMPLETED\n'
        'echo "JobId=7 JobState=$word Reason=None Restarts=0 ExitCode=0:0 NodeList=n1"\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    state = tmp_path / "a" / "logs" / "state-7"
    state.write_text("RUNNING\n")
    gone = [0.0]

    def sleep(seconds):
        gone[0] += seconds
        output.write_text(output.read_text() + f"line {len(output.read_text().splitlines())}\n")
        if gone[0] == 60:
            state.write_text("SUCCEEDED\n")

    clock = SimpleNamespace(monotonic=lambda: gone[0], sleep=sleep)
    monkeypatch.setattr("jobs.watching.time", clock)
    logs._files(made, follow=True)
    assert capsys.readouterr().out.splitlines() == [f"line {i}" for i in range(120)]
    assert gone[0] == 60  # the state file shows the end
    assert len((tmp_path / "asked").read_text().splitlines()) <= 11
