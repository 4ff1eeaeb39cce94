"""What a source is to the rest: a function that lists, and what there is to list."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.plan import Entry


@dataclass(frozen=True, slots=True)
class Offer:
    """What the publisher offers, for whoever has not fetched it yet."""

    title: str
    page: str
    licence: str
    files: tuple[tuple[str, str], ...]  # name as published, what it holds
    give: str  # what `source=` may be
    paper: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # images by split, as published

    def text(self) -> str:
        """As shown by `shard` without a source."""
        width = max((len(name) for name, _ in self.files), default=0)
        lines = [self.title, f"  page     {self.page}", f"  licence  {self.licence}"]
        if self.paper:
            lines.append(f"  paper    {self.paper}")
        if self.counts:
            counted = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
            lines.append(f"  images   {counted}")
        lines += [f"  {name:<{width}}  {what}" for name, what in self.files]
        return "\n".join([*lines, f"  source=  {self.give}"])


@dataclass(frozen=True, slots=True)
class DatasetSource:
    offer: Offer
    entries: Callable[[Path, float], Iterator[Entry]]  # (source, holdout share) → every file


def say(line: str) -> None:
    """Tell the user what was made of the source."""
    print(line, file=sys.stderr, flush=True)
