"""The datasets as their publishers lay them out, one file each.

A source lists its files as plan entries and says what its publisher offers; it reads no pixels.
"""

from shards.sources import folder, wds
from shards.sources.offer import Source

SOURCES: dict[str, Source] = {"folder": folder.SOURCE, "wds": wds.SOURCE}


def source(layout: str) -> Source:
    """The source for `data.layout`. Raises ValueError naming the choices."""
    if layout not in SOURCES:
        raise ValueError(f"data.layout={layout} is none of {', '.join(SOURCES)}")
    return SOURCES[layout]
