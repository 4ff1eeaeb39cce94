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
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipeline.supervise import leave_word

TALE = 3  # looks in a row at which a silent rank is silent


class Watch:
    """Watches this process's marks from a thread; does nothing where there is one process."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        limit: float,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self._every = min(5.0, limit / 10)
        self._end = end or _leave
        self._place: tuple[int, int, str] = (0, 0, "starting")  # marks, step, what
        self._moved = time.monotonic()
        self._closed = threading.Event()
        if world_size > 1:
            threading.Thread(target=self._run, name="watch", daemon=True).start()

    def mark(self, step: int, doing: str) -> None:
        """This process now begins `doing` in `step`; in the same order on every rank."""
        self._place = (self._place[0] + 1, step, doing)
        self._moved = time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(2.0, 2 * self._every)),
        )
        beats = 0
        while not self._closed.wait(self._every):
            beats += 1
            where = {"place": self._place, "beat": beats, "host": socket.gethostname()}
            try:
                store.set(f"watch/{self.rank}", json.dumps(where))
            except dist.DistError:
                if self._stalled(0):
                    self._end(f"{self._since()}: rank 0 on {os.environ['MASTER_ADDR']} is silent")
                continue
            if self._stalled(0 if self.rank == 0 else 2 * TALE):
                before = self._look(store)
                if not self._closed.wait(TALE * self._every) and self._stalled(0):
                    self._end(f"{self._since()}: {culprits(before, self._look(store))}")

    def _stalled(self, patience: int) -> bool:
        """Rank 0 speaks first, so that it is said once."""
        return time.monotonic() - self._moved > self.limit + patience * self._every

    def _since(self) -> str:
        return f"no step has ended for {self.limit:.0f} s (parallel.hang_timeout)"

    def _look(self, store: Any) -> list[dict[str, Any] | None]:
        """What each rank last said; None of one that never did, or of all once rank 0 is silent."""
        found: list[dict[str, Any] | None] = []
        for rank in range(self.world_size):
            key = f"watch/{rank}"
            try:
                found.append(json.loads(store.get(key)) if store.check([key]) else None)
            except dist.DistError:
                found.append(None)
        found[self.rank] = {
            "place": self._place,
            "beat": time.monotonic(),
            "host": socket.gethostname(),
        }
        return found


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
    ahead = max(places)
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
    leave_word(line)
    print(line, file=sys.stderr, flush=True)
    os._exit(1)  # the main thread is in a collective that does not return
