"""What a source is to the rest: a function that lists, and what there is to list."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    cite: str = ""

    def text(self) -> str:
        """As shown by `shard` without a source."""
        width = max((len(name) for name, _ in self.files), default=0)
        lines = [self.title, f"  page     {self.page}", f"  licence  {self.licence}"]
        if self.cite:
            lines.append(f"  paper    {self.cite}")
        lines += [f"  {name:<{width}}  {what}" for name, what in self.files]
        return "\n".join([*lines, f"  source=  {self.give}"])


@dataclass(frozen=True, slots=True)
class Source:
    offer: Offer
    entries: Callable[[Path, float], Iterator[Entry]]  # (source, holdout share) → every file
