"""CelebA-HQ, 30,000 faces, split 28,000/2,000 as MSA-Net does.

The paper does not say which 2,000 are the test set; we take the last 2,000 by the number in the
file's name. Published as CelebAMask-HQ.zip, whose own masks are not used.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.plan import Entry
from shards.sources.offer import DatasetSource, Offer
from shards.sources.published import Part, find, hold_out

FACES = 30_000
TEST = 2_000
_IMAGES = b"CelebA-HQ-img/"


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    """Yield 28,000 train and 2,000 test by number; `holdout` of train becomes val.

    `source` is CelebAMask-HQ.zip, a folder with it, or any folder, tar or zip of the 30,000 images.
    Raises ValueError unless there are 30,000 numbered images.
    """
    part = find(source, (), ("CelebAMask-HQ.zip",)) or Part(
        *((source, "", "") if source.is_dir() else (source.parent, "", source.name))
    )
    images = [file for file in part.images() if b"mask-anno/" not in file.path]
    if any(_IMAGES in file.path for file in images):
        images = [file for file in images if _IMAGES in file.path]
    numbers = [re.findall(rb"\d+", file.path.rsplit(b"/", 1)[-1]) for file in images]
    by_number = {int(digits[-1]): file for digits, file in zip(numbers, images) if digits}
    if len(images) != FACES or len(by_number) != FACES:
        raise ValueError(
            f"{source}: {len(images)} images with {len(by_number)} numbers, but CelebA-HQ has "
            f"{FACES:,}; give CelebAMask-HQ.zip or the whole folder"
        )
    ordered = [by_number[number] for number in sorted(by_number)]
    split = ["train"] * (FACES - TEST) + ["test"] * TEST
    listed_entries = (part.entry(name, file) for name, file in zip(split, ordered))
    yield from hold_out(listed_entries, part.root, holdout)


SOURCE = DatasetSource(
    Offer(
        title="CelebA-HQ (1024x1024)",
        page="https://github.com/switchablenorms/CelebAMask-HQ",
        license="non-commercial research and education only, as CelebA (see that page)",
        files=(("CelebAMask-HQ.zip", "30,000 faces in CelebA-HQ-img/0.jpg … 29999.jpg"),),
        accepts="that zip, the folder with it, or any folder, tar or zip of the 30,000 images",
        paper="Karras et al., Progressive Growing of GANs, ICLR 2018",
        counts={"train": FACES - TEST, "test": TEST},
    ),
    entries,
)
