"""Who empties a spool: the trainer's thread while it trains, `sync` afterwards or beside it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.common import secrets
from pipeline.tracking import errors
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import Delivery, Gone
from pipeline.tracking.spool import Unsent, draining


class Sender:
    """Sends the events of one spool, in order, from its cursor on.

    run: the run's folder or URL, where `run.json` lies. Exactly one process sends at a time.
    """

    def __init__(self, run: str, uri: str, folder: Path) -> None:
        self.run, self.uri, self.folder = run, uri, folder
        self.sent = self.rejected = 0
        self.give_up = threading.Event()  # after `stop`: what cannot be sent now stays
        self._delivery: Delivery | None = None
        self._told: str | None = None

    def once(self) -> bool:
        """Sends all there is; False if another process has the right to. Raises what hinders."""
        with draining(self.folder) as mine:
            if mine:
                self._send(Unsent(self.folder))
            return mine

    def until(self, stop: threading.Event, wake: threading.Event, tidy: Callable[[], None]) -> None:
        """Sends whatever appears until `stop` is set and all is sent. `tidy` is called in between.

        An outage is told once on stderr and waited out; `wake` cuts the waiting short.
        """
        while True:
            with draining(self.folder) as mine:
                if mine:
                    self._keep_sending(stop, wake, tidy)
                    return
            self.tell("another process is sending this run's events")
            if stop.wait(1.0):
                return

    def tell(self, trouble: str | None) -> None:
        """Says that tracking is interrupted, once for each cause; None: that it is back."""
        if trouble is None and self._told:
            say("the tracking server answers again")
        elif trouble and trouble != self._told:
            say(f"{trouble}; events wait in {self.folder}")
        self._told = trouble

    def _keep_sending(
        self, stop: threading.Event, wake: threading.Event, tidy: Callable[[], None]
    ) -> None:
        unsent, pause = Unsent(self.folder), 1.0
        while True:
            stopping = stop.is_set()  # read first: what came before it is then seen below
            try:
                self._send(unsent)
                self.tell(None)
                pause = 1.0
                if stopping:
                    return
            except Gone as error:
                self.tell(str(error))
                return
            except Exception as error:  # whatever it is, training goes on and the events stay
                self.tell(errors.explain(error, self.uri) or f"{type(error).__name__}: {error}")
                pause = min(30.0, pause * 2)
            tidy()
            if stopping:
                if self.give_up.wait(min(pause, 2.0)):
                    return
            elif wake.wait(pause):
                wake.clear()

    def _send(self, unsent: Unsent) -> None:
        if self._delivery is None:
            client = connect(self.uri)
            self._delivery = Delivery(client, self.uri, self.run, unsent)
        self._delivery.unsent = unsent
        while events := unsent.read():
            self._delivery.send(events)
            self.sent += len(events)
            self.rejected = self._delivery.rejected


def say(line: str) -> None:
    print(f"tracking: {secrets.redact(line)}", file=sys.stderr, flush=True)
