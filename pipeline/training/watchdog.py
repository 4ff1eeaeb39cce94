"""A rank that hangs is named: its host, its last step and what it was doing.

Every rank marks where it is; a thread tells the store of the process group that the process is
alive, and where it stands. When the marks stop for `limit` seconds the threads look at each other:
who is silent (stopped, or its machine is gone), else who is behind. Then the process ends, and its
launcher ends the others. A collective alone would wait longer, and name nobody.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any

import torch.distributed as dist

from pipeline.launch.output import record_error

TALE = 3  # looks in a row at which a silent rank is silent
FIRST = 10  # times `limit` for what a process does for the first time: kernels are compiled


class Watchdog:
    """Watches this process's marks from a thread; does nothing where there is one process.

    A context that ranks leave together, unless an error ends it.
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
        self._patience = max(2.0, 2 * self._every)  # seconds that the store gets to answer
        self._end = end or _leave
        self._place: tuple[int, int, str] = (0, 0, "starting")  # marks, step, what
        self._allowed = FIRST * limit
        self._known: set[str] = set()
        self._moved = self._awake = time.monotonic()
        self._first: dict[str, Any] | None = None  # what rank 0 said last
        # At once: the name of a job that is being deleted may mean nothing any more.
        self._store = self._connected() if world_size > 1 else None
        self._closed = threading.Event()
        if world_size > 1:
            threading.Thread(target=self._run, name="watch", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(error, Exception):  # rank 0 may still have written a checkpoint
                self.after(self._place[1], "leaving")
        finally:
            self._closed.set()

    def mark(self, step: int, doing: str) -> None:
        """This process now begins `doing` in `step`; in the same order on every rank."""
        self._place = (self._place[0] + 1, step, doing)
        self._moved = time.monotonic()
        self._allowed = self.limit if doing in self._known else FIRST * self.limit
        self._known.add(doing)

    def touch(self) -> None:
        """It goes on with that: no mark, for one rank may have more of it to do than another."""
        self._moved = time.monotonic()

    def rest(self) -> None:
        """Until the next mark this process may take any time."""
        self._allowed = inf

    def after(self, step: int, doing: str, work: Callable[[], None] = lambda: None) -> None:
        """`work`, after which no rank goes on before rank 0, however long that takes.

        Not by a collective, which would time out. Raises ConnectionError where rank 0 is gone, or
        its store has not answered for `limit` seconds.
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
            raise ConnectionError(f"another rank is gone, rank 0: {error}") from None

    def _run(self) -> None:
        beats = 0
        while not self._closed.wait(self._every):
            beats += 1
            where = {"place": self._place, "beat": beats, "host": socket.gethostname()}
            try:
                self._first = self._ask(partial(self._tell, where)) or self._first
                if self.stalled(0 if self.rank == 0 else 2 * TALE):
                    before = self._ask(self._look)
                    if not self._closed.wait(TALE * self._every) and self.stalled():
                        self._end(f"{self._since()}: {culprits(before, self._ask(self._look))}")
            except (dist.DistError, TimeoutError):
                if self.stalled() and not self._closed.is_set():
                    self._end(f"{self._since()}: {self._silent()}")

    def stalled(self, patience: int = 0) -> bool:
        """Whether the marks have stopped. Rank 0 speaks first, so that it is said once.

        A process that was itself stopped knows nothing of the others: its patience begins anew.
        """
        now = time.monotonic()
        if now - self._awake > 2 * (TALE * self._every + self._patience):
            self._moved = now
        self._awake = now
        return now - self._moved > self._allowed + patience * self._every

    def _since(self) -> str:
        return f"no step has ended for {self._allowed:.0f} s (parallel.hang_timeout)"

    def _silent(self) -> str:
        where = _told(self._first) if self._first else f"on {os.environ['MASTER_ADDR']}"
        return f"rank 0 {where} is silent"

    def _ask(self, question: Callable[[Any], Any], seconds: float | None = None) -> Any:
        """What the store answers; TimeoutError where it does not, and the thread is left behind.

        The store's own time-outs do not hold while the process that serves it, rank 0, is stopped.
        """
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(question(self._store))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="watch-asks", daemon=True).start()
        return answer.result(seconds or self._patience)

    def _connected(self) -> Any:
        return dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),  # of the connection; `_ask` waits for no answer so long
        )

    def _tell(self, where: dict[str, Any], store: Any) -> dict[str, Any] | None:
        """Tell the others where this rank stands; what rank 0 told, None before it spoke."""
        store.set(f"watch/{self.rank}", json.dumps(where))
        return _read(store, 0)

    def _look(self, store: Any) -> list[dict[str, Any] | None]:
        """What each rank last said; None of one that never did."""
        found = [_read(store, rank) for rank in range(self.world_size)]
        found[self.rank] = {
            "place": self._place,
            "beat": time.monotonic(),
            "host": socket.gethostname(),
        }
        return found


def _read(store: Any, rank: int) -> dict[str, Any] | None:
    key = f"watch/{rank}"
    return json.loads(store.get(key)) if store.check([key]) else None


def culprits(
    before: Sequence[dict[str, Any] | None], after: Sequence[dict[str, Any] | None]
) -> str:
    """Who holds the others up, from two looks at all ranks.

    Silent ranks, whose beat stands still; where all speak, those whose marks are fewest.
    """
    silent = [r for r, (a, b) in enumerate(zip(before, after)) if not a or not b or same(a, b)]
    if silent:
        return "; ".join(f"rank {r} {_told(after[r] or before[r])} is silent" for r in silent)
    places = [found["place"] for found in after if found]
    least = min(place[0] for place in places)
    behind = [r for r, place in enumerate(places) if place[0] == least]
    if len(behind) == len(places):
        return f"every rank stands at step {places[0][1]}, {places[0][2]}"
    told = "; ".join(f"rank {r} {_told(after[r])} is behind" for r in behind)
    ahead = max(places, key=lambda place: int(place[0]))
    return f"{told}; the furthest is at step {ahead[1]}, {ahead[2]}"


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return bool(before["beat"] == after["beat"])


def straggler(paces: Sequence[dict[str, Any]]) -> tuple[float, str | None]:
    """Slowest over median rank, and a line where it is half as slow again, by more than 10 ms.

    paces: per rank its host, and the medians of its own milliseconds a step: `wait` for data, `cpu`
    of the training thread. What a rank waits for others is in neither.
    """
    own = [pace["wait"] + pace["cpu"] for pace in paces]
    median = sorted(own)[(len(own) - 1) // 2]
    worst = max(range(len(own)), key=own.__getitem__)
    ratio = own[worst] / median if median else 1.0
    if ratio < 1.5 or own[worst] - median < 10:
        return ratio, None
    pace = paces[worst]
    return ratio, (
        f"straggler: rank {worst} on {pace['host']} spends {own[worst]:.0f} ms a step "
        f"({pace['wait']:.0f} waiting for data), the median rank {median:.0f} ms"
    )


def _told(found: dict[str, Any] | None) -> str:
    if found is None:
        return "on an unknown host (it never spoke)"
    return f"on {found['host']} (last step {found['place'][1]}, {found['place'][2]})"


def _leave(line: str) -> None:
    line = f"pipeline train: {line}"
    record_error(line)
    print(line, file=sys.stderr, flush=True)
    os._exit(1)  # the main thread is in a collective that does not return
