"""Existing WebDataset tars; `shards.external` indexes them in place."""

from collections.abc import Iterator
from pathlib import Path

from shards.plan import Entry
from shards.sources.offer import DatasetSource, Offer


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    raise ValueError(f"{source}: tars of data.layout=wds are indexed in place, not rewritten")


SOURCE = DatasetSource(
    Offer(
        title="Existing WebDataset tars",
        page="(its publisher's)",
        license="(its publisher's)",
        files=(
            ("*.tar", "members KEY.jpg, .png, .webp, ..., KEY.cls as label; others are ignored"),
            (
                "train/ val/ test/",
                "folders of such tars, or train-*.tar val-*.tar, if there are splits",
            ),
        ),
        accepts="a folder or URL of tars, or a pattern such as s3://bucket/train-{0000..0099}.tar",
    ),
    entries,
)
