"""Send the events of a spool to MLflow: during training in a thread, otherwise by `sync`."""

import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.common import console
from pipeline.common.secrets import redact
from pipeline.tracking import errors
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.spool import Unsent, draining


class Sender:
    """Sends the events of one spool in order, starting at its cursor.

    run: the folder or URL that holds `run.json`. Only one process sends at a time.
    """

    def __init__(self, run: str, uri: str, folder: Path) -> None:
        self.run, self.uri, self.folder = run, uri, folder
        self.sent = self.rejected = 0
        # Set after `stop`: events that cannot be sent now stay in the spool.
        self.give_up = threading.Event()
        self._delivery: Delivery | None = None
        self._problem: str | None = None

    def once(self) -> bool:
        """Send all events; False if another process is sending them. Raises if that fails."""
        with draining(self.folder) as mine:
            if mine:
                self._send(Unsent(self.folder))
            return mine

    def until(self, stop: threading.Event, wake: threading.Event, tidy: Callable[[], None]) -> None:
        """Send events as they appear until `stop` is set and all are sent; call `tidy` in between.

        During an outage, reported once on stderr, it retries; `wake` shortens the pause.
        """
        while True:
            with draining(self.folder) as mine:
                if mine:
                    self._keep_sending(stop, wake, tidy)
                    return
            self.report("another process is sending this run's events")
            if stop.wait(1.0):
                return

    def report(self, problem: str | None) -> None:
        """Report an interruption once for each cause; None: the server is reachable again."""
        if problem is None and self._problem:
            say("the tracking server is reachable again")
        elif problem and problem != self._problem:
            say(f"{problem}; buffering events in {self.folder}")
        self._problem = problem

    def _keep_sending(
        self, stop: threading.Event, wake: threading.Event, tidy: Callable[[], None]
    ) -> None:
        unsent, pause = Unsent(self.folder), 1.0
        while True:
            stopping = stop.is_set()  # read before sending, so that no earlier event is missed
            try:
                self._send(unsent)
                self.report(None)
                pause = 1.0
                if stopping:
                    return
            except Exception as error:  # no error of tracking may end training; events are kept
                self.report(errors.explain(error, self.uri))
                if isinstance(error, errors.RunDeleted):
                    return
                pause = min(30.0, pause * 2)
            tidy()
            if stopping:
                if self.give_up.wait(min(pause, 2.0)):
                    return
            elif wake.wait(pause):
                wake.clear()

    def _send(self, unsent: Unsent) -> None:
        if self._delivery is None:
            self._delivery = Delivery(connect(self.uri, run=self.run), self.uri, self.run, unsent)
        self._delivery.unsent = unsent
        while events := unsent.read():
            self._delivery.send(events)
            self.sent += len(events)
            self.rejected = self._delivery.rejected


def say(line: str) -> None:
    """Print a line of tracking on stderr."""
    console.say(f"tracking: {redact(line)}")
