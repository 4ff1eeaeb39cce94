"""Lines for the person at the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from shards import writer


def show_sharding(progress: writer.Progress) -> None:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    line = (
        f"shard {progress.shards}/{progress.of_shards}  "
        f"{progress.images}/{progress.of_images} images  {progress.rejected} rejected  "
        f"{progress.bytes / 2**20:.0f} MiB  {progress.rate:.0f} images/s  "
        f"{minutes}:{seconds:02d} left"
    )
    if sys.stderr.isatty():
        last = progress.shards == progress.of_shards
        print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        say(line)


def progress(name: str, total: int, shown: bool = True) -> Callable[[int], None]:
    """`tell(done)`: live on a terminal, one plain line every 30 s else; to stderr."""
    began = told = time.monotonic()
    live = sys.stderr.isatty()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if not shown or not (live or now - told >= 30):
            return
        told = now
        line = f"{name}: {done}/{total} pairs, {done / max(now - began, 1e-9):.1f}/s"
        end = "\n" if not live or done >= total else ""
        print(f"\r{line}" if live else line, end=end, file=sys.stderr, flush=True)

    return tell


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[object]], align: str = "<") -> list[str]:
    """Return the rows as lines of aligned columns, two spaces apart.

    align: `<` (left) or `>` (right) for each column; the last one holds for all that follow.
    """
    grid = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*grid)]
    signs = align.ljust(len(widths), align[-1])
    return [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths)).rstrip()
        for row in grid
    ]
