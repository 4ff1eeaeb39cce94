"""A process pool whose workers end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def map_unordered(function: Callable[[J], R], jobs: Iterator[J], workers: int) -> Iterator[R]:
    """Yield `function` of each job in the order of completion; few jobs wait, to bound memory.

    No worker outlives the call. Raises RuntimeError when a worker was killed.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fsspec's event loop is not fork-safe
    with ProcessPoolExecutor(workers, context, _end_with_parent, (os.getpid(),)) as pool:
        waiting: set[Future[R]] = set()
        try:
            for job in jobs:
                waiting.add(pool.submit(function, job))
                if len(waiting) > workers:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            while waiting:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a shard writer was killed (out of memory?); run the same command again to continue"
            ) from error
        finally:
            # Wait: a program can hang at exit while its pool is still shutting down.
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Make this worker end when its parent is killed, instead of waiting for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
