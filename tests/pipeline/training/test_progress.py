"""What training says on a terminal and in a log, from a process that has one or the other."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from pipeline.training import progress

ROOT = Path(__file__).resolve().parents[3]
SAYS = """
import time
from pipeline.training.progress import Meter
meter = Meter(0, 80, True)
for i in range(10):
    time.sleep(0.03)
    meter.step(8, 0.5, 0.1, {"g/l1": 0.5})
meter.say("checked runs/[a]")
meter.close()
"""


def started(stderr):
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    return subprocess.Popen([sys.executable, "-c", SAYS], cwd=ROOT, stderr=stderr, env=env)


def test_a_log_gets_whole_lines_now_and_then():
    process = started(subprocess.PIPE)
    lines = process.communicate(timeout=60)[1].decode().splitlines()
    assert process.returncode == 0
    assert lines == ["8/80 images  g/l1 0.5", "checked runs/[a]"]  # the next is due after 30 s


def test_losses_remain_displayed_between_log_lines_and_days_are_shown(monkeypatch, capsys):
    """On a GPU losses are fetched at every twentieth step only."""
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    meter = progress.Meter(0, 5_000_000, True)
    assert meter.values() == {}
    for number, losses in enumerate(({}, {"g/l1": 0.5}, {}, {}, {"g/l1": 0.25})):
        assert meter.values().get("perf/images_per_s_train") == (16 if number > 3 else None)
        meter.step(8, 0.5, 0.0, losses)
    assert capsys.readouterr().err.splitlines() == [
        "8/5000000 images",
        "16/5000000 images  g/l1 0.5",
        "24/5000000 images  g/l1 0.5",
        "32/5000000 images  16.0/s  3 days, 14:48:18 left  g/l1 0.5",
        "40/5000000 images  16.0/s  3 days, 14:48:17 left  g/l1 0.25",
    ]


def test_a_terminal_gets_a_line_that_moves_with_speed_time_left_and_waiting():
    ours, theirs = pty.openpty()
    process = started(theirs)
    os.close(theirs)
    found = b""
    while True:
        try:
            found += os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    text = found.decode()
    assert "\x1b[2K" in text and "━" in text  # erased and drawn again
    assert "16.0/s" in text and "waiting for data 20%" in text and "checked runs/[a]" in text
