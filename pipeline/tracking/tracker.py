"""Record a run in MLflow. Only rank 0 has a Tracker.

A call appends an event to the run's spool and returns (microseconds, no network). One daemon thread
sends the events, with an explicit run id, and retries until the server accepts them: an outage
neither slows training nor loses data. `python -m pipeline sync RUN` sends what is left at the end.
"""

import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.common.environment import RESTARTS_LEFT
from pipeline.common.errors import one_line
from pipeline.common.secrets import redact
from pipeline.runs.job_record import cancelled
from pipeline.tracking import errors, provenance
from pipeline.tracking.client import connect, no_retries, ping, uri_for
from pipeline.tracking.delivery import clean, flatten
from pipeline.tracking.remote_spool import (
    STATE,
    fetch_spool,
    place,
    push_spool,
    read_state,
    spool_folder,
)
from pipeline.tracking.sender import Sender, say
from pipeline.tracking.spool import Spool, Unsent, write_json
from shards import store

SAMPLE_EVERY = 15.0  # seconds between samples of the machine


class Tracker:
    """Records a run: the MLflow run that `run.json` names (from `submit`), else a new one.

    run_dir: the run's folder or URL. The spool of a remote run is in a cache folder; `publish`
        (with each checkpoint) copies it to the run, for a later start on another node.
    uri: MLflow; None: the environment's, else sqlite under `root`, the folder that holds the runs.
    required: `start` raises ServerError if the server cannot be used.
    direction: 1 for the name of a metric that is better when higher, -1 when lower.
    drain: False: only spool; `sync` sends from a machine that can reach the server.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        root: str | None = None,
        uri: str | None = None,
        experiment: str,
        run_name: str,
        required: bool = False,
        drain: bool = True,
        direction: Callable[[str], int] = lambda key: 1,
    ) -> None:
        no_retries()
        self.run = str(run_dir)
        self.uri = uri_for(self.run, root, uri)
        self.folder = spool_folder(self.run)
        self._identity = {"experiment": experiment, "run_name": run_name}
        self._required, self._drains, self._direction = required, drain, direction
        self._state: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []
        self._stop, self._wake, self._due = (threading.Event() for _ in range(3))
        self._pushing = threading.Lock()
        self._sender = Sender(self.run, self.uri, self.folder)
        self._step = self._nonfinite = self._lost = 0

    # --- what the training loop calls ------------------------------------------------------------

    def start(
        self,
        params: dict[str, Any],
        tags: dict[str, str],
        dataset: tuple[str, str, str] | None = None,
    ) -> None:
        """Begin or resume the run. `dataset` is (name, url, digest).

        Parameters may be nested; the provenance is recorded here. Raises OSError if the spool
        cannot be written, ServerError if tracking is required and the server cannot be used.
        """
        if not store.is_local(self.run):
            fetch_spool(self.run, self.folder)
        self.spool = Spool(self.folder)
        self._state = self._read_state()
        tags_of_environment, texts = provenance.environment()
        started = self.spool.append(
            "start",
            uid=self._state["uid"],
            attempt=self._state["attempt"],
            params=flatten(params),
            tags={**tags_of_environment, **tags, "job.state": "running"},
            dataset=dict(zip(("name", "url", "digest"), dataset)) if dataset else None,
            **self._identity,
        )
        if not started:
            raise OSError(f"cannot write {self.folder}: free some space there")
        for path, text in texts.items():
            self.artifact(path, text.encode())
        if self._drains:
            self._prepare()
            self._begin(lambda: self._sender.until(self._stop, self._wake, self.spool.sync))
        if not store.is_local(self.run):
            self.publish()  # the next node needs this run's uid, even if this one dies early
            self._begin(self._publish_when_due)
        self._begin(self._watch_machine)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics at `step` (images seen). `health/nonfinite` counts non-finite values.

        The best value of each `val/*` is logged as `best/*`, the step of the best `val/psnr` as
        `best/step`.
        """
        finite = {clean(key): float(v) for key, v in values.items() if math.isfinite(v)}
        if len(finite) < len(values):
            self._nonfinite += len(values) - len(finite)
            finite["health/nonfinite"] = float(self._nonfinite)
        if self.spool.lost > self._lost:
            self._lost = self.spool.lost
            finite["health/spool_lost"] = float(self._lost)
        finite.update(self._improved(finite, step))
        self._step = int(step)
        if finite:
            self.spool.append("metrics", values=finite, step=int(step))

    def image(self, key: str, pixels: np.ndarray, step: int) -> None:
        """Log a uint8 H×W×3 image at `step`; in the UI one key is one card with a slider."""
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        if name := self.spool.keep_image(pixels):
            self.spool.append(
                "image", key=clean(key), step=int(step), shape=pixels.shape, files=[name]
            )

    def artifact(self, path: str, data: bytes) -> None:
        """Log `data` as the artifact `path`."""
        self.spool.artifact(path, data)

    def tag(self, key: str, value: str) -> None:
        self.spool.append("tags", values={clean(key): str(value)})

    def publish(self) -> None:
        """Copy the unsent spool of a remote run to the run's URL; called with every checkpoint."""
        self.spool.rotate()
        self._due.set()

    def finish(self, status: str, wait: float = 60.0) -> None:
        """End the run: FINISHED, FAILED, KILLED, or REQUEUED, which leaves the run open.

        Waits at most `wait` seconds for unsent events, then prints how to send them.
        """
        self.spool.append("finish", status=status, uid=self._state["uid"])
        self._keep_state(ended=status)
        for event in (self._stop, self._wake, self._due):
            event.set()
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._sender.give_up.set()
        self.spool.close()
        self._push()
        if left := Unsent(self.folder).count():
            say(f"{left} events are not sent yet; to send them: python -m pipeline sync {self.run}")
        if self.spool.lost:
            say(f"{self.spool.lost} events were lost: {self.folder} could not be written")
        if self._sender.rejected:
            log = self.folder / "rejected.jsonl"
            say(f"{self._sender.rejected} events were rejected by the server: see {log}")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Finish: FINISHED, FAILED after an exception, KILLED on Ctrl-C and after `cancel`,
        REQUEUED on exit status 75, and where the launcher may start this worker again."""
        if not self._state:
            return  # `start` was not reached
        if kind is None or isinstance(error, SystemExit) and not error.code:
            self.finish("FINISHED")
        elif isinstance(error, SystemExit) and error.code == os.EX_TEMPFAIL:
            self.finish("KILLED" if cancelled(self.run) else "REQUEUED", wait=10)
        elif isinstance(error, Exception) and int(os.environ.get(RESTARTS_LEFT, "0")):
            self.finish("REQUEUED", wait=0)  # if not, the launcher records the failure
        else:
            self.tag("job.error", redact(one_line(error)))
            self.finish("KILLED" if kind is KeyboardInterrupt else "FAILED", wait=10)

    # --- state -----------------------------------------------------------------------------------

    def _read_state(self) -> dict[str, Any]:
        state = read_state(self.folder) or {"uid": uuid.uuid4().hex, "attempt": 0, "best": {}}
        state |= {"attempt": state["attempt"] + 1, "ended": None}
        state |= {"at": place(self.folder), "drains": self._drains}
        write_json(self.folder / STATE, state)
        return state

    def _keep_state(self, **changed: Any) -> None:
        self._state |= changed
        try:
            write_json(self.folder / STATE, self._state)
        except OSError:
            self.spool.lost += 1

    def _improved(self, values: dict[str, float], step: int) -> dict[str, float]:
        better: dict[str, float] = {}
        for key, value in values.items():
            if not key.startswith("val/"):
                continue
            name = "best/" + key.removeprefix("val/")
            best = self._state["best"].get(name)
            if best is None or self._direction(key) * (value - best) > 0:
                better[name] = value
                if key == "val/psnr":
                    better["best/step"] = float(step)
        if better:
            self._keep_state(best=self._state["best"] | better)
        return better

    # --- threads ---------------------------------------------------------------------------------

    def _begin(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _prepare(self) -> None:
        """Import what sending needs: an import in the thread would block the training loop."""
        import PIL.Image  # noqa: F401

        try:
            client = connect(self.uri, run=self.run)
            if self._required:
                ping(client, self.uri)
        except errors.ServerError as error:
            if self._required:
                raise
            self._sender.report(str(error))

    def _publish_when_due(self) -> None:
        while self._due.wait() and not self._stop.is_set():
            self._due.clear()
            self._push()

    def _push(self) -> None:
        if store.is_local(self.run):
            return
        with self._pushing:
            try:
                push_spool(self.run, self.folder, self._drains)
            except Exception as error:  # the next checkpoint retries; training must not fail here
                where = store.display(self.run)
                say(f"the spool could not be copied to {where}: {one_line(error)}")

    def _watch_machine(self) -> None:
        while True:
            sample = provenance.system_metrics(folder=str(self.folder))
            self.spool.append("metrics", values=sample, step=self._step)
            if not self._drains:
                self.spool.sync()
            if self._stop.wait(SAMPLE_EVERY):
                return


class NullTracker:
    """A Tracker that does nothing, for the other ranks and for `tracking.enabled=false`."""

    def start(self, *args: Any, **kwargs: Any) -> None: ...

    metrics = image = artifact = tag = publish = finish = start

    def __enter__(self) -> "NullTracker":
        return self

    def __exit__(self, *args: Any) -> None: ...
