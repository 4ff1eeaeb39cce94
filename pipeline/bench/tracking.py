"""`bench tracking`: how long logging delays the training loop, under each fault.

A loop of short steps logs 20 metrics per step through a Tracker whose server works, is down, slow
(5 s per answer), fails (500), refuses (401), or whose disk is full. The baseline is MLflow's own
client as its documentation uses it, one synchronous `log_batch` per step into the same embedded
store. `no record` is the same loop with 50 µs of arithmetic instead: the noise of this machine.
`queued` is the part of the worst call in which no core was free for the loop (on Linux).
"""

import contextlib
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.timing import report, rounds, target
from pipeline.tracking.client import connect, experiment_id
from pipeline.tracking.tracker import Tracker

STALL_MS = 50.0
KEYS = [f"g/term{i:02d}" for i in range(20)]
Log = Callable[[dict[str, float], int], None]
Answers = dict[str, tuple[float, int] | None]
FAULTS: Answers = {"dead": None, "slow": (5.0, 500), "500": (0.0, 500), "401": (0.0, 401)}


def run(steps: int = 200, repetitions: int = 5) -> dict[str, Any]:
    """Measure in turn the worst and the median call of each repetition, in seconds."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(_failing(how)) for name, how in FAULTS.items()}
        for turn, counts in enumerate(rounds(repetitions)):
            for name, logging in _loops(Path(scratch, str(turn)), urls).items():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                with logging as log:
                    calls, queued = _loop(log, steps)
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                empty: dict[str, Any] = {"seconds": [], "median_seconds": [], "queued_seconds": []}
                row = rows.setdefault(name, {"name": name, **empty})
                if counts:  # the first round imports MLflow and creates the store
                    row["seconds"].append(max(calls))
                    row["median_seconds"].append(statistics.median(calls))
                    row["queued_seconds"].append(queued[calls.index(max(calls))])
                    row["peak_bytes"] = max(row.get("peak_bytes", 0), grown * 1024)
    ours = [name for name in rows if name not in ("no record", "MLflow alone")]
    typical = {name: statistics.median(row["median_seconds"]) for name, row in rows.items()}
    worst = {name: max(row["seconds"]) * 1000 for name, row in rows.items()}
    without_core = {
        name: row["queued_seconds"][row["seconds"].index(max(row["seconds"]))] * 1000
        for name, row in rows.items()
    }
    ratios = {
        "a call's time, MLflow alone / ours": typical["MLflow alone"] / typical["embedded"],
        **{f"worst call, ms: {name}": value for name, value in worst.items()},
        **{f"queued of it, ms: {name}": value for name, value in without_core.items()},
        **{f"a call, µs: {name}": typical[name] * 1e6 for name in ours},
    }
    targets = {f"stall, {name}": target(worst[name], STALL_MS, at_least=False) for name in ours}
    work = {"steps": steps, "metrics": len(KEYS), "step_ms": 4}
    return report("tracking", work, list(rows.values()), ratios, targets)


def _loops(folder: Path, urls: dict[str, str]) -> dict[str, contextlib.AbstractContextManager[Log]]:
    embedded = f"sqlite:///{folder.parent}/mlflow.db"
    loops = {name: _tracked(folder / name, url) for name, url in urls.items()}
    return {
        "no record": contextlib.nullcontext(_nothing),
        "MLflow alone": _plain(embedded),
        "embedded": _tracked(folder / "embedded", embedded),
        **loops,
        "full disk": _tracked(folder / "full", embedded, full=True),
    }


def _nothing(values: dict[str, float], step: int) -> None:
    until = time.perf_counter() + 50e-6
    while time.perf_counter() < until:
        pass


def _loop(log: Log, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each call of `log`, and seconds of it that this thread waited for a core.

    Between calls the loop computes for about 4 ms.
    """
    work = np.random.default_rng(0).random((256, 256), np.float32)
    spent, queued = [], []
    for step in range(steps):
        until = time.perf_counter() + 0.004
        while time.perf_counter() < until:
            work @ work
        values = {key: step + 0.5 for key in KEYS}
        before, start = _queued(), time.perf_counter()
        log(values, step)
        spent.append(time.perf_counter() - start)
        queued.append(_queued() - before)
    return spent, queued


def _queued() -> float:
    """Seconds that this thread has been ready to run while no core was free; 0 if unknown."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


@contextlib.contextmanager
def _tracked(folder: Path, uri: str, full: bool = False) -> Iterator[Log]:
    with _no_uri(), open(os.devnull, "w") as nowhere:
        tracker = Tracker(folder, uri=uri, experiment="bench", run_name=folder.name)
        with contextlib.redirect_stderr(nowhere):  # the outage is reported once
            tracker.start({}, {})
            if full:
                os.close(tracker.spool._file)
                tracker.spool._file = os.open("/dev/full", os.O_WRONLY)
            yield tracker.metrics
            tracker.finish("FINISHED", wait=0.0)


@contextlib.contextmanager
def _plain(uri: str) -> Iterator[Log]:
    with _no_uri():
        client = connect(uri)
        from mlflow.entities import Metric

        run = client.create_run(experiment_id(client, uri, "bench")).info.run_id

        def log(values: dict[str, float], step: int) -> None:
            now = int(time.time() * 1000)
            client.log_batch(run, [Metric(k, v, now, step) for k, v in values.items()])

        yield log
        client.set_terminated(run)


@contextlib.contextmanager
def _no_uri() -> Iterator[None]:
    """Hide the user's tracking server, so that the benchmark writes nothing to it."""
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def _failing(how: tuple[float, int] | None) -> Iterator[str]:
    """The URL of a server that answers every request with one status after some seconds.

    how: (seconds, status); None: no server listens at the URL.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert how is not None
            threading.Event().wait(how[0])
            with contextlib.suppress(OSError):
                self.send_error(how[1])

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    failing = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    failing.daemon_threads = True
    url = f"http://127.0.0.1:{failing.server_port}"
    if how is None:
        failing.server_close()
        yield url
        return
    threading.Thread(target=failing.serve_forever, daemon=True).start()
    try:
        yield url
    finally:
        failing.shutdown()
        failing.server_close()
