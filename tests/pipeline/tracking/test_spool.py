"""The spool: what is appended comes out once, whole and in order, whatever happens in between."""

import json
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.tracking import spool
from pipeline.tracking.spool import Position, Spool, Unsent, draining

ROOT = Path(__file__).resolve().parents[3]


def steps(events):
    return [event.fields["step"] for event in events if event.kind == "metrics"]


def read_all(unsent, limit=7):
    events = []
    while batch := unsent.read(limit):
        events += batch
        unsent.advance(batch[-1].after)
    return events


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 500)


def test_events_come_out_once_and_in_order_over_many_segments(tmp_path, small_segments):
    writing = Spool(tmp_path)
    for step in range(100):
        assert writing.append("metrics", values={"g/l1": step / 3}, step=step)
    assert len(list(tmp_path.glob("events-*.jsonl"))) > 5
    assert Unsent(tmp_path).count() == 100

    events = read_all(Unsent(tmp_path))

    assert steps(events) == list(range(100))
    assert events[1].fields["values"] == {"g/l1": 1 / 3}
    assert Unsent(tmp_path).count() == 0
    assert len(list(tmp_path.glob("events-*.jsonl"))) == 1, "sent segments are removed"


def test_reading_continues_from_the_cursor_in_another_process(tmp_path, small_segments):
    writing = Spool(tmp_path)
    for step in range(30):
        writing.append("metrics", step=step)
    first = Unsent(tmp_path)
    events = first.read(11)
    first.advance(events[-1].after)

    assert steps(events) + steps(read_all(Unsent(tmp_path))) == list(range(30))


def test_a_torn_last_line_is_not_an_event_until_another_writer_ends_it(tmp_path):
    writing = Spool(tmp_path)
    writing.append("metrics", step=1)
    with open(tmp_path / "events-000001.jsonl", "ab") as file:
        file.write(b'{"kind": "metr')
    assert steps(Unsent(tmp_path).read()) == [1]

    Spool(tmp_path).append("metrics", step=2)

    events = read_all(Unsent(tmp_path))
    assert steps(events) == [1, 2]
    assert [event.fields["line"] for event in events if event.kind == "torn"] == [
        '{"kind": "metr\n'
    ]


def test_a_reader_waits_for_the_end_of_a_segment_even_if_the_next_one_is_there(tmp_path):
    writing = Spool(tmp_path)
    writing.append("metrics", step=1)
    # What another machine may see on NFS: the next segment, but not yet the last bytes of this one.
    (tmp_path / "events-000002.jsonl").write_bytes(b'{"kind": "metrics", "t": 1, "step": 3}\n')
    unsent = Unsent(tmp_path)
    assert steps(read_all(unsent)) == [1]

    with open(tmp_path / "events-000001.jsonl", "ab") as file:
        file.write(b'{"kind": "metrics", "t": 1, "step": 2}\n' + spool.END)

    assert steps(read_all(unsent)) == [2, 3]


def test_a_lost_cursor_sends_again_from_the_beginning(tmp_path):
    writing = Spool(tmp_path)
    writing.append("metrics", step=1)
    unsent = Unsent(tmp_path)
    unsent.advance(unsent.read()[-1].after)
    (tmp_path / "cursor.json").write_text("{")

    assert Unsent(tmp_path).position == Position(1, 0)
    assert steps(Unsent(tmp_path).read()) == [1]


def test_a_copy_that_is_older_than_its_cursor_hides_nothing_that_comes_later(tmp_path):
    """A node died while its spool was copied: the cursor is newer than the segment next to it."""
    writing = Spool(tmp_path)
    for step in range(3):
        writing.append("metrics", step=step)
    unsent = Unsent(tmp_path)
    unsent.advance(unsent.read()[-1].after)
    (tmp_path / "events-000001.jsonl").write_bytes(b"")

    later = Spool(tmp_path)
    later.append("metrics", step=3)

    assert steps(read_all(Unsent(tmp_path))) == [3]


def test_threads_do_not_tear_each_others_lines(tmp_path, small_segments):
    writing = Spool(tmp_path)

    def write(first):
        for step in range(first, first + 200):
            writing.append("metrics", step=step, text="x" * 60)

    threads = [threading.Thread(target=write, args=(n * 200,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(steps(read_all(Unsent(tmp_path)))) == list(range(800))


def test_a_full_disk_is_counted_and_what_fits_stays_whole(tmp_path):
    code = f"""
import json, resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.tracking.spool import Spool, Unsent
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # as a disk of 3000 bytes a file
spool = Spool(Path({str(tmp_path)!r}))
kept = [spool.append("metrics", step=step) for step in range(100)]
print(json.dumps({{"kept": sum(kept), "lost": spool.lost}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout)

    assert counts["lost"] > 0 and counts["kept"] + counts["lost"] == 100
    assert steps(read_all(Unsent(tmp_path))) == list(range(counts["kept"]))


def test_a_killed_process_loses_nothing_that_was_appended(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.tracking.spool import Spool
spool = Spool(Path({str(tmp_path)!r}))
for step in range(500):
    spool.append("metrics", step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code])

    assert done.returncode == -signal.SIGKILL
    assert steps(read_all(Unsent(tmp_path))) == list(range(500))


def test_only_one_process_may_drain(tmp_path):
    (tmp_path / "files").mkdir()
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.tracking.spool import draining
with draining(Path({str(tmp_path)!r})) as mine:
    print(mine)
"""
    ask = [sys.executable, "-c", code]
    with draining(tmp_path) as mine:
        assert mine
        assert subprocess.run(ask, capture_output=True, text=True).stdout.strip() == "False"
    assert subprocess.run(ask, capture_output=True, text=True).stdout.strip() == "True"


def test_an_artifact_is_stored_with_the_event_that_logs_it(tmp_path):
    writing = Spool(tmp_path)
    writing.artifact("environment/hardware.json", b"{}")

    (event,) = Unsent(tmp_path).read()
    assert (event.kind, event.fields["folder"]) == ("artifact", "environment")
    (holder,) = event.fields["files"]
    assert (tmp_path / "files" / holder / "hardware.json").read_bytes() == b"{}"


def test_a_file_that_cannot_be_stored_is_counted_and_has_no_event(tmp_path):
    writing = Spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        writing.artifact("config.yaml", bytes(2000))
        assert writing.keep_image(np.zeros((100, 100, 3), np.uint8)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert writing.lost == 2 and Unsent(tmp_path).read() == []
    assert list((tmp_path / "files").iterdir()) == []


def test_an_image_is_kept_byte_for_byte(tmp_path):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    turned = pixels.transpose(1, 0, 2)  # not contiguous
    writing = Spool(tmp_path)

    name = writing.keep_image(turned)

    assert (tmp_path / "files" / name).read_bytes() == turned.tobytes()


def test_reading_holds_a_bounded_number_of_bytes(tmp_path):
    writing = Spool(tmp_path)
    for step in range(50):
        writing.append("metrics", step=step, text="x" * 1000)

    assert len(Unsent(tmp_path).read(limit=1000, max_bytes=10_000)) == 10
