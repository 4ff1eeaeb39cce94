"""Groups of real processes that start again in place, and launchers that agree on it."""

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.launch import restarts as module
from pipeline.launch import workers
from pipeline.launch.restarts import Restarts
from pipeline.launch.topology import Place, free_port, place
from pipeline.launch.workers import LASTING, Ended, supervise

# Each waits for the other, so that none is ended before it has begun.
WORKER = """
import json, os, pathlib, signal, sys, time
folder, rank = pathlib.Path({folder!r}), int(os.environ["RANK"])
def count(name):
    return name.read_text().count("\\n") if name.exists() else 0
def note(what):
    with open(folder / f"{{what}}{{rank}}", "a") as out:
        out.write(f"{{os.getpid()}} {{os.environ['MASTER_PORT']}} {{time.monotonic()}}\\n")
    return count(folder / f"{{what}}{{rank}}")
note("ready")
if os.environ.get("LACUNA_HELD"):
    os.environ.update(json.loads(sys.stdin.readline() or sys.exit()))
attempt = note("began")
while count(folder / f"began{{1 - rank}}") < attempt:
    time.sleep(0.01)
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
{code}
"""


def run(folder, code, retries=2, progress=lambda: 0, processes=2):
    """The end of a group, the causes of its restarts, and (pid, port, time) of each start."""
    causes = []
    here = place({}, processes)
    again = Restarts(here, retries, progress, lambda cause, failed: causes.append(cause))
    text = WORKER.format(folder=str(folder), code=code)
    ended = supervise([sys.executable, "-c", text], here.workers, restarts=again)
    starts = [line.split() for line in (folder / "began1").read_text().splitlines()]
    return ended, causes, starts


def test_a_group_with_a_killed_worker_starts_again_at_another_port(tmp_path, capfd):
    code = "killed() if rank == 1 and attempt == 1 else time.sleep(60 * (attempt == 1))"
    ended, causes, starts = run(tmp_path, code)
    assert ended == Ended(0) and len(starts) == 2 and starts[0][1] != starts[1][1]
    (cause,) = causes
    assert cause.startswith("rank 1 on ") and "SIGKILL" in cause
    assert capfd.readouterr().err == f"{cause}; starting again in place\n"


@pytest.mark.parametrize(("left", "status"), [(LASTING, 1), (78, 78), (75, 75)])
def test_what_would_fail_in_the_same_way_or_was_asked_for_is_not_tried_again(
    tmp_path, left, status
):
    ended, causes, starts = run(tmp_path, f"sys.exit({left})")
    assert (ended.status, causes, len(starts)) == (status, [], 1)


@pytest.mark.parametrize(("saved", "starts"), [([0, 0, 0, 0], 3), ([0, 8, 8, 8, 8], 4)])
def test_retries_are_those_in_a_row_without_a_new_checkpoint(tmp_path, saved, starts):
    answers = iter(saved)
    ended, causes, made = run(tmp_path, "sys.exit(3)", progress=lambda: next(answers))
    assert ended.status == 1 and len(made) == starts and len(causes) == starts - 1


def test_the_next_group_is_ready_before_the_first_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PREPARE_AFTER", 0.0)
    code = (
        "while min(count(folder / f'ready{i}') for i in (0, 1)) < 2: time.sleep(0.02)\n"
        "time.sleep(0.3)\n"
        "killed() if attempt == 1 else None"
    )
    ended, _, starts = run(tmp_path, code)
    ready = dict(line.split()[::2] for line in (tmp_path / "ready1").read_text().splitlines())
    assert ended == Ended(0)
    pid, _, began = starts[1]
    assert float(ready[pid]) < float(began) - 0.2
    assert (tmp_path / "began0").read_text().split()[4] == starts[1][1]


def nodes(count, retries=1, progress=lambda: 0):
    causes = []
    port = 20_000 + free_port() % 10_000
    made = [
        Restarts(Place(count, node, 1, "127.0.0.1", port), retries, progress,
                 lambda cause, failed: causes.append(cause))
        for node in range(count)
    ]  # fmt: skip
    end = time.monotonic() + 20
    while len(made[0]._peers._links) < count - 1 or any(not m._peers._links for m in made[1:]):
        assert time.monotonic() < end
        assert not any(one.called() for one in made)
        time.sleep(0.02)
    return made, causes


def answers(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(*call) for call in calls]]


def test_all_nodes_end_their_workers_and_start_again_after_the_same_cause():
    made, causes = nodes(3)
    lost, killed = "connection closed by peer", "rank 1 on n2 was killed by SIGKILL"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(made[1].again, killed)
        end = time.monotonic() + 10
        while not (made[0].called() and made[2].called()):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert answers((made[0].again, lost), (made[2].again, lost)) == [killed] * 2
        assert first.result() == killed
    assert causes == [killed]
    assert not any(one.called() for one in made)
    assert answers(*((one.again, lost) for one in made)) == [None] * 3  # no retry is left
    for one in made:
        one.close(True)


def test_a_launcher_that_is_gone_ends_the_restarts_of_all():
    made, _ = nodes(3)
    made[2].close(False)
    end = time.monotonic() + 10
    while not made[0].called():
        assert time.monotonic() < end
    assert answers((made[0].again, "lost"), (made[1].again, "lost"))[0] is None
    assert made[1].again("lost") is None
    made[1].close(True)


def test_a_node_that_is_done_leaves_the_others_to_end_but_not_to_start_again():
    made, causes = nodes(2)
    made[1].close(True)
    time.sleep(0.2)
    assert not made[0].called()
    assert made[0].again("lost") is None and not causes
    made[0].close(True)


def test_a_node_that_does_not_answer_ends_the_restarts_after_a_limit(monkeypatch):
    monkeypatch.setattr(module, "MEET", 0.5)
    made, causes = nodes(2)
    assert made[1].again("lost") is None and not causes
    for one in made:
        one.close(True)


def test_a_stranger_on_the_port_is_sent_away():
    made, _ = nodes(2)
    with socket.create_connection(("127.0.0.1", made[0].here.master_port - 12_000)) as stranger:
        for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"cause": null}\n'):
            stranger.sendall(text)
        end = time.monotonic() + 10
        stranger.settimeout(0.1)
        while time.monotonic() < end:
            assert not made[0].called()
            try:
                assert stranger.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        else:
            raise AssertionError("it is still connected")
    for one in made:
        one.close(True)
