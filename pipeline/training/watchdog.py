"""The hang watchdog: reports the rank that hangs with its host, last step and activity.

Every rank marks its progress; a thread writes the mark and a heartbeat to the process group's
store. When the marks stop for `limit` seconds, the thread compares all ranks: which are silent
(stopped, or their machine is gone), else which are behind. It ends its process, and the launcher
ends the others. A collective alone would wait longer and would not name the rank.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.common.console import say
from pipeline.launch.output import record_error

STACK = 8  # calls of a hanging rank's stack that are shown
SILENT_LOOKS = 3  # checks in a row without a heartbeat that make a rank silent
FIRST_TIME_FACTOR = 10  # times `limit` for an activity's first time: kernels are compiled


class Watchdog:
    """Watch this process's marks in a thread; does nothing with one process.

    A context that all ranks leave together, unless an error ends it.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        limit: float,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self._every = min(5.0, limit / 10)
        self._patience = max(2.0, 2 * self._every)  # seconds to wait for the store
        self._end = end or _exit
        self._place: tuple[int, int, str] = (0, 0, "starting")  # marks, step, what
        self._allowed = FIRST_TIME_FACTOR * limit
        self._known: set[str] = set()
        self._moved = self._awake = time.monotonic()
        self._first: dict[str, Any] | None = None  # rank 0's last record
        self._store: Any = None
        self._closed = threading.Event()
        if world_size > 1:
            # Connect now: the host name of a job that is being deleted may no longer resolve.
            self._store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=60),  # for connecting; `_ask` has a shorter one
            )
            threading.Thread(target=self._run, name="watch", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(error, Exception):  # wait while rank 0 writes a checkpoint
                self.after(self._place[1], "leaving")
        finally:
            self._closed.set()

    def mark(self, step: int, doing: str) -> None:
        """Record that `doing` begins in `step`; ranks must make the same marks in one order."""
        self._place = (self._place[0] + 1, step, doing)
        self._moved = time.monotonic()
        self._allowed = self.limit if doing in self._known else FIRST_TIME_FACTOR * self.limit
        self._known.add(doing)

    def touch(self) -> None:
        """Record progress without a mark: ranks may have different amounts of the same work."""
        self._moved = time.monotonic()

    def rest(self) -> None:
        """Allow any time until the next mark."""
        self._allowed = inf

    def after(self, step: int, doing: str, work: Callable[[], None] = lambda: None) -> None:
        """Do `work`, then wait for rank 0 to finish its own, however long that takes.

        Not a collective, which would time out. Raises ConnectionError if rank 0 is gone, or its
        store has not answered for `limit` seconds.
        """
        self.mark(step, doing)
        self.rest()
        work()
        key, pause = f"watch/{step}/{doing}", 0.005
        if self.world_size == 1:
            return
        try:
            if self.rank == 0:
                self._ask(lambda store: store.set(key, "1"), self.limit)
            while not self._ask(lambda store: store.check([key]), self.limit):
                time.sleep(pause)
                pause = min(0.25, 2 * pause)
        except TimeoutError:
            raise ConnectionError(self._silent()) from None
        except dist.DistError as error:
            raise ConnectionError(f"lost connection to rank 0: {error}") from None

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            try:
                self._first = self._ask(self._publish) or self._first
                if self.stalled(0 if self.rank == 0 else 2 * SILENT_LOOKS):
                    before = self._ask(self._look)
                    if not self._closed.wait(SILENT_LOOKS * self._every) and self.stalled():
                        self._end(f"{self._since()}: {culprits(before, self._ask(self._look))}")
            except (dist.DistError, TimeoutError):
                if self.stalled() and not self._closed.is_set():
                    self._end(f"{self._since()}: {self._silent()}")

    def stalled(self, patience: int = 0) -> bool:
        """Return whether the marks stopped; others wait longer than rank 0, so that one reports.

        A process that was itself suspended knows nothing of the others: its time starts again.
        """
        now = time.monotonic()
        if now - self._awake > 2 * (SILENT_LOOKS * self._every + self._patience):
            self._moved = now
        self._awake = now
        return now - self._moved > self._allowed + patience * self._every

    def _since(self) -> str:
        return f"no step has ended for {self._allowed:.0f} s (parallel.hang_timeout)"

    def _silent(self) -> str:
        where = _described(self._first) if self._first else f"on {os.environ['MASTER_ADDR']}"
        return f"rank 0 {where} is silent{_where(self._first)}"

    def _ask(self, question: Callable[[Any], Any], seconds: float | None = None) -> Any:
        """Query the store; TimeoutError without an answer, which leaves the thread behind.

        The store's own timeouts do not work while rank 0, which serves it, is suspended.
        """
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(question(self._store))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="watch-asks", daemon=True).start()
        return answer.result(seconds or self._patience)

    def _record(self) -> dict[str, Any]:
        here = {"place": self._place, "beat": time.monotonic(), "host": socket.gethostname()}
        return {**here, "stack": _stack()}

    def _publish(self, store: Any) -> dict[str, Any] | None:
        """Publish this rank's record; return rank 0's, None before its first."""
        store.set(f"watch/{self.rank}", json.dumps(self._record()))
        return _read(store, 0)

    def _look(self, store: Any) -> list[dict[str, Any] | None]:
        """Return each rank's last record; None for a rank without one."""
        records = [_read(store, rank) for rank in range(self.world_size)]
        records[self.rank] = self._record()
        return records


def _read(store: Any, rank: int) -> dict[str, Any] | None:
    key = f"watch/{rank}"
    return json.loads(store.get(key)) if store.check([key]) else None


def culprits(
    before: Sequence[dict[str, Any] | None], after: Sequence[dict[str, Any] | None]
) -> str:
    """Name the ranks that hold up the others, from two snapshots of all ranks.

    Silent ranks, without a new heartbeat; if there are none, those with the fewest marks.
    """
    pairs = enumerate(zip(before, after))
    silent = [r for r, (a, b) in pairs if not a or not b or a["beat"] == b["beat"]]
    if silent:
        last = {r: after[r] or before[r] for r in silent}
        line = "; ".join(f"rank {r} {_described(record)} is silent" for r, record in last.items())
        return line + _where(last[silent[0]])
    places = [record["place"] for record in after if record]
    least = min(place[0] for place in places)
    behind = [r for r, place in enumerate(places) if place[0] == least]
    if len(behind) == len(places):
        return f"all ranks are at step {places[0][1]}, {places[0][2]}"
    line = "; ".join(f"rank {r} {_described(after[r])} is behind" for r in behind)
    ahead = max(places, key=lambda place: int(place[0]))
    return f"{line}; the furthest is at step {ahead[1]}, {ahead[2]}{_where(after[behind[0]])}"


def straggler(paces: Sequence[dict[str, Any]]) -> tuple[float, str | None]:
    """Return the slowest rank's time over the median's, and a line if it is a straggler.

    A straggler takes 1.5 times the median rank's time, and 10 ms more. paces: each rank's host and
    its own median milliseconds per step, `wait` for data and `cpu` of the training thread; waiting
    for other ranks is in neither.
    """
    own = [pace["wait"] + pace["cpu"] for pace in paces]
    median = sorted(own)[(len(own) - 1) // 2]
    worst = max(range(len(own)), key=own.__getitem__)
    ratio = own[worst] / median if median else 1.0
    if ratio < 1.5 or own[worst] - median < 10:
        return ratio, None
    pace = paces[worst]
    return ratio, (
        f"straggler: rank {worst} on {pace['host']} spends {own[worst]:.0f} ms per step "
        f"({pace['wait']:.0f} waiting for data), the median rank {median:.0f} ms"
    )


def _described(record: dict[str, Any] | None) -> str:
    if record is None:
        return "on an unknown host (no heartbeat yet)"
    return f"on {record['host']} (last step {record['place'][1]}, {record['place'][2]})"


def _where(record: dict[str, Any] | None) -> str:
    return f"; it was last in {record['stack']}" if record and record.get("stack") else ""


def _stack() -> str:
    """Return where the main thread is, innermost first, in one line."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    calls = traceback.extract_stack(frame)[-STACK:]
    return " < ".join(f"{Path(c.filename).name}:{c.lineno} {c.name}" for c in reversed(calls))


def _exit(line: str) -> None:
    line = f"pipeline train: {line}"
    record_error(line)
    say(line)
    os._exit(1)  # the main thread is in a collective that does not return
