"""A child that is attended saves when asked, dies with its parent, and has its memory counted."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARENT = (
    "import os, sys, tempfile\n"
    "from pipeline.launch.workers import attended\n"
    "with tempfile.TemporaryFile('w+') as out:\n"
    "    status, peak = attended([sys.executable, '-c', sys.argv[1]], os.environ, out)\n"
    "print(status, round(peak), flush=True)\n"
)


@pytest.fixture
def attend(tmp_path):
    """Starts the parent with a child that runs `code`; gives it and the child's process id."""

    def start(code):
        mark = tmp_path / "pid"
        code = f"import os, pathlib, signal, sys, time\n{code}"
        code = code.replace("READY", f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))")
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        return parent, int(mark.read_text())

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_reaches_the_child_and_its_end_is_waited_for(attend, number):
    saves = "def save(*_): time.sleep(1); sys.exit(75)\n"
    parent, _ = attend(f"{saves}signal.signal({int(number)}, save)\nREADY\ntime.sleep(60)")
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=30)
    assert out.startswith("75 ")


def test_the_child_dies_with_its_parent(attend):
    parent, child = attend("READY\ntime.sleep(60)")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_memory_of_all_its_processes_is_counted_together(attend):
    hold = "block = bytearray(200_000_000)\n"
    fork = "pid = os.fork()\n" + hold + "READY if pid else None\ntime.sleep(3)\n"
    parent, _ = attend(fork + "os.waitpid(pid, 0) if pid else None")
    out, _ = parent.communicate(timeout=30)
    status, peak = map(int, out.split())
    assert status == 0 and 400 < peak < 600
