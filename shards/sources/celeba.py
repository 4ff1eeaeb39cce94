"""CelebA's aligned faces: img_align_celeba, split by list_eval_partition.txt."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from shards.plan import SPLITS, Entry
from shards.sources.offer import DatasetSource, Offer
from shards.sources.published import Part, find, hold_out, missing_download, read_list

LIST = "list_eval_partition.txt"
CSV = "list_eval_partition.csv"  # of Kaggle's copy


def entries(source: Path, holdout: float, merged: bool = False) -> Iterator[Entry]:
    """Yield every face with its published split; `holdout` is unused, as CelebA has a val split.

    With `merged`, the published val is train too, and `holdout` of both becomes val, as MUSICAL
    trains on both. Raises ValueError when the images or the list are missing, or do not match.
    """
    part = find(source, ("img_align_celeba",), ("img_align_celeba.zip", "img_align_celeba.tar"))
    packed = (source.name,) if source.is_file() else ()
    if part is None and packed:  # Kaggle's one archive
        part = Part(source.parent, "", source.name)
    if part is None:
        raise missing_download(source, "img_align_celeba.zip or img_align_celeba/")
    lines = read_list(source, LIST, packed) or read_list(source, CSV, packed)
    if lines is None:
        raise missing_download(source, f"{LIST} or .csv (next to the images, or in Eval/)")
    faces = _faces(source, part, _partition(lines))
    if not merged:
        yield from faces
        return
    both = (e._replace(split="train") if e.split == "val" else e for e in faces)
    yield from hold_out(both, part.root, holdout)


def _faces(source: Path, part: Part, split_of: dict[str, str]) -> Iterator[Entry]:
    for file in part.images():
        name = file.path.rsplit(b"/", 1)[-1].decode("utf-8", "replace")
        if name not in split_of:
            raise ValueError(
                f"{source}: {name!r} is not in {LIST}; take both from the same release"
            )
        yield part.entry(split_of[name], file)


def _partition(lines: list[str]) -> dict[str, str]:
    """`000001.jpg 0` lines: 0 train, 1 val, 2 test. A heading, as in the CSV copies, is skipped."""
    split_of = {}
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words or words[-1] == "partition":
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise ValueError(
                f"{LIST}, line {number}: invalid {line!r}: expected a name and 0, 1 or 2"
            )
        split_of[words[0]] = SPLITS[int(words[1])]
    return split_of


SOURCE = DatasetSource(
    Offer(
        title="CelebA, aligned and cropped (178x218)",
        page="http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        license="non-commercial research only, no redistribution (see that page)",
        files=(
            ("img_align_celeba.zip", "202,599 faces, about 1.4 GB"),
            (LIST, "0 train, 1 val, 2 test for each (Eval/ on the page's drive)"),
        ),
        accepts="the folder that holds both (or Img/ and Eval/), or Kaggle's zip, unpacked or not",
        paper="Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015",
        counts={"train": 162_770, "val": 19_867, "test": 19_962},
    ),
    entries,
)
TRAIN_AND_VAL = DatasetSource(
    replace(
        SOURCE.offer,
        title=SOURCE.offer.title + ", train and val together (as MUSICAL trains on it)",
        counts={"train": 162_770 + 19_867, "test": 19_962},
    ),
    partial(entries, merged=True),
)
