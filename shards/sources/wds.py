"""WebDataset tars that somebody else wrote; `shards.external` indexes them where they lie."""

from collections.abc import Iterator
from pathlib import Path

from shards.plan import Entry
from shards.sources.offer import DatasetSource, Offer


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    raise ValueError(f"{source}: tars of layout wds are indexed where they lie, never rewritten")


SOURCE = DatasetSource(
    Offer(
        title="WebDataset tars, as somebody else wrote them",
        page="(theirs)",
        licence="(theirs)",
        files=(
            ("*.tar", "members KEY.jpg|jpeg|png|webp, KEY.cls as label; other members are let be"),
            (
                "train/ val/ test/",
                "folders of such tars, or train-*.tar val-*.tar, where splits are",
            ),
        ),
        give="a folder or URL of tars, or a pattern such as s3://bucket/train-{0000..0099}.tar",
    ),
    entries,
)
