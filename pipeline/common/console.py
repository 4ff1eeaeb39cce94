"""Lines for the person at the terminal: messages, progress and aligned columns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress


def say(line: str, end: str = "\n") -> None:
    """Print to stderr at once; a terminal that was closed is ignored, so that work can be saved."""
    with suppress(OSError):
        print(line, end=end, file=sys.stderr, flush=True)


def live(every: float = 30.0) -> Callable[[str, bool], None]:
    """Return `show(line, last)`: progress on stderr.

    On a terminal the line is rewritten in place, otherwise printed at most once in `every` seconds.
    """
    terminal = sys.stderr.isatty()
    due = time.monotonic() + every

    def show(line: str, last: bool) -> None:
        nonlocal due
        if terminal:
            say(f"\r\x1b[K{line}", "\n" if last else "")
        elif time.monotonic() >= due:
            due = time.monotonic() + every
            say(line)

    return show


def progress(name: str, total: int, shown: bool = True) -> Callable[[int], None]:
    """Return `update(done)`, which shows how many of `total` pairs are done and how many a second.

    Nothing is printed unless `shown`: only one of several processes shows its progress.
    """
    start, show = time.monotonic(), live()

    def update(done: int) -> None:
        if shown:
            rate = done / max(time.monotonic() - start, 1e-9)
            show(f"{name}: {done}/{total} pairs, {rate:.1f}/s", done >= total)

    return update


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
