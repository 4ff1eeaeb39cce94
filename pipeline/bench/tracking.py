"""`bench tracking`: how long logging delays the training loop, under each fault.

A loop of short steps logs 20 metrics per step through a Tracker whose server works, is down, slow
(5 s per answer), fails (500), refuses (401), or whose disk is full. The baseline is MLflow's own
client as its documentation uses it, one synchronous `log_batch` per step into the same embedded
store.
"""

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.timing import peak_bytes, report, reset_peak, rounds, target
from pipeline.tracking.client import connect, experiment_id
from pipeline.tracking.tracker import Tracker

STALL_MS = 50.0
KEYS = [f"g/term{i:02d}" for i in range(20)]
Log = Callable[[dict[str, float], int], None]
FAULTS = {"slow": (5.0, 500), "500": (0.0, 500), "401": (0.0, 401)}  # seconds, status
DEAD = "http://127.0.0.1:9"  # nothing listens there


def run(steps: int = 200, repetitions: int = 5) -> dict[str, Any]:
    """Measure in turn the worst and the median call of each repetition, in seconds."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # write nothing to the user's server
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(_failing(*how)) for name, how in FAULTS.items()}
        for turn, counts in enumerate(rounds(repetitions)):
            for name, logging in _loops(Path(scratch, str(turn)), urls).items():
                reset_peak()
                with logging as log:
                    calls = _loop(log, steps)
                if counts:  # the first round imports MLflow and creates the store
                    empty = {"name": name, "seconds": [], "median_seconds": [], "peak_bytes": 0}
                    row = rows.setdefault(name, empty)
                    row["seconds"].append(max(calls))
                    row["median_seconds"].append(statistics.median(calls))
                    row["peak_bytes"] = max(row["peak_bytes"], peak_bytes())
    typical = {name: statistics.median(row["median_seconds"]) for name, row in rows.items()}
    worst = {name: max(row["seconds"]) * 1000 for name, row in rows.items()}
    ratios = {
        "a call's time, MLflow alone / ours": typical["MLflow alone"] / typical["embedded"],
        **{f"worst call, ms: {name}": value for name, value in worst.items()},
        **{f"a call, µs: {name}": value * 1e6 for name, value in typical.items()},
    }
    targets = {
        f"stall, {name}": target(value, STALL_MS, at_least=False)
        for name, value in worst.items()
        if name != "MLflow alone"
    }
    work = {"steps": steps, "metrics": len(KEYS), "step_ms": 4}
    return report("tracking", work, list(rows.values()), ratios, targets)


def _loops(folder: Path, urls: dict[str, str]) -> dict[str, contextlib.AbstractContextManager[Log]]:
    embedded = f"sqlite:///{folder.parent}/mlflow.db"
    return {
        "MLflow alone": _plain(embedded),
        "embedded": _tracked(folder / "embedded", embedded),
        **{name: _tracked(folder / name, url) for name, url in {"dead": DEAD, **urls}.items()},
        "full disk": _tracked(folder / "full", embedded, full=True),
    }


def _loop(log: Log, steps: int) -> list[float]:
    """Time each call of `log`; between calls the loop computes for about 4 ms."""
    work = np.random.default_rng(0).random((256, 256), np.float32)
    spent = []
    for step in range(steps):
        until = time.perf_counter() + 0.004
        while time.perf_counter() < until:
            work @ work
        values = {key: step + 0.5 for key in KEYS}
        start = time.perf_counter()
        log(values, step)
        spent.append(time.perf_counter() - start)
    return spent


@contextlib.contextmanager
def _tracked(folder: Path, uri: str, full: bool = False) -> Iterator[Log]:
    tracker = Tracker(folder, uri=uri, experiment="bench", run_name=folder.name)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        tracker.start({}, {})  # the outage is reported once
        if full:
            os.close(tracker.spool._file)
            tracker.spool._file = os.open("/dev/full", os.O_WRONLY)
        yield tracker.metrics
        tracker.finish("FINISHED", wait=0.0)


@contextlib.contextmanager
def _plain(uri: str) -> Iterator[Log]:
    client = connect(uri)
    from mlflow.entities import Metric

    run = client.create_run(experiment_id(client, uri, "bench")).info.run_id

    def log(values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, [Metric(k, v, now, step) for k, v in values.items()])

    yield log
    client.set_terminated(run)


@contextlib.contextmanager
def _failing(seconds: float, status: int) -> Iterator[str]:
    """Yield the URL of a server that answers every request with `status` after `seconds`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                self.send_error(status)

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    failing = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=failing.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{failing.server_port}"
    finally:
        failing.shutdown()
        failing.server_close()
