"""Jobs over processes that end with the one that started them."""

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
    """`function` of each job, in the order they end; few jobs wait, so memory is bounded.

    No worker outlives it. Raises RuntimeError when a worker was killed.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fsspec's event loop survives no fork
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
                "a shard writer was killed (out of memory?); the same command goes on from here"
            ) from error
        finally:
            # waiting: the exit of a program whose pool is still ending can hang for ever
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """A writer whose parent was killed ends too, instead of waiting for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
