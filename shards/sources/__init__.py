"""Datasets in the layouts of their publishers, one file each.

A source lists its files as plan entries and describes the download; it reads no pixels.
"""

from shards.sources import celeba, celeba_hq, folder, paris, places365, wds
from shards.sources.offer import DatasetSource

SOURCES: dict[str, DatasetSource] = {
    "folder": folder.SOURCE,
    "places365_standard": places365.STANDARD,
    "places365_challenge": places365.CHALLENGE,
    "places365_canyon": places365.CANYON_SCENES,
    "celeba": celeba.SOURCE,
    "celeba_trainval": celeba.TRAIN_AND_VAL,
    "celeba_hq": celeba_hq.SOURCE,
    "paris": paris.SOURCE,
    "wds": wds.SOURCE,
}


def source(layout: str) -> DatasetSource:
    """Return the source for `data.layout`. Raises ValueError naming the choices."""
    if layout not in SOURCES:
        raise ValueError(f"unknown data.layout={layout}: choose one of {', '.join(SOURCES)}")
    return SOURCES[layout]
