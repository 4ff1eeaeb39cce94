"""A dataset source: a function that lists its files, and a description of the download."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.plan import Entry


@dataclass(frozen=True, slots=True)
class Offer:
    """The publisher's download, described for users who do not have it yet."""

    title: str
    page: str
    license: str
    files: tuple[tuple[str, str], ...]  # name as published, what it holds
    accepts: str  # what `source=` may be
    paper: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # images by split, as published

    def text(self) -> str:
        """Return the text that `shard` shows without a source."""
        width = max((len(name) for name, _ in self.files), default=0)
        lines = [self.title, f"  page     {self.page}", f"  license  {self.license}"]
        if self.paper:
            lines.append(f"  paper    {self.paper}")
        if self.counts:
            counted = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
            lines.append(f"  images   {counted}")
        lines += [f"  {name:<{width}}  {what}" for name, what in self.files]
        return "\n".join([*lines, f"  source=  {self.accepts}"])


@dataclass(frozen=True, slots=True)
class DatasetSource:
    offer: Offer
    entries: Callable[[Path, float], Iterator[Entry]]  # (source, holdout share) → every file


def say(line: str) -> None:
    """Print how the source was read."""
    print(line, file=sys.stderr, flush=True)
