"""Paris StreetView as distributed by its authors: 14,900 training views, 100 for evaluation."""

from collections.abc import Iterator
from pathlib import Path

from shards.plan import Entry
from shards.sources.offer import DatasetSource, Offer
from shards.sources.published import Part, hold_out, missing_download

TRAIN, TEST = b"paris_train_original", b"paris_eval_gt"


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    """Yield the views in paris_train_original/ (train) and paris_eval_gt/ (test), at any depth.

    Archives in the folder whose names begin with `paris` are read too. `holdout` of train becomes
    val. Raises ValueError if one of the two is missing.
    """
    root = source if source.is_dir() else source.parent
    parts = [Part(root, "", "")] if source.is_dir() else [Part(root, "", source.name)]
    if source.is_dir():
        names = sorted(p.name for p in source.iterdir() if p.suffix in (".zip", ".tar"))
        parts += [Part(root, "", name) for name in names if name.lower().startswith("paris")]
    views: list[Entry] = []
    for part in parts:
        for file in part.images():
            folders = file.path.split(b"/")[:-1]
            split = "train" if TRAIN in folders else "test" if TEST in folders else ""
            if split:
                views.append(part.entry(split, file))
    missing = {"train", "test"} - {entry.split for entry in views}
    if missing:
        raise missing_download(
            source, "paris_train_original/ and paris_eval_gt/, or the zips with them"
        )
    if len({(entry.split, entry.src) for entry in views}) != len(views):
        raise ValueError(f"{source} contains both a zip and its unpacked folder: keep only one")
    yield from hold_out(views, root, holdout)


SOURCE = DatasetSource(
    Offer(
        title="Paris StreetView (about 936x537)",
        page="https://github.com/pathak22/context-encoder",
        license="distributed by the authors on request, for research",
        files=(
            ("paris_train_original/", "14,900 views (.JPG)"),
            ("paris_eval/paris_eval_gt/", "100 views (.png)"),
        ),
        accepts="the folder with both, unpacked or as the authors' zips",
        paper="Doersch et al. 2012; split of Pathak et al., Context Encoders, CVPR 2016",
        counts={"train": 14_900, "test": 100},
    ),
    entries,
)
