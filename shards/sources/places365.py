"""Places365-Standard and -Challenge (Places2), and MUSICAL's canyon scenes, as MIT published them.

    data_large/ or data_256/   a/airfield/00000001.jpg …        train, in class folders
    val_large/  or val_256/    Places365_val_00000001.jpg …     flat; places365_val.txt has labels
    test_large/ or test_256/   Places365_test_00000001.jpg …    flat; labels were never published
    places365_standard/        train/airfield/00000001.jpg …, val/airfield/…   ("easyformat")

each as a folder or inside its tar. Labels come from categories_places365.txt or the list files,
next to the images or in filelist_places365-*.tar; without them the samples have no labels. The
labels of a train folder without class folders come from the list by file name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from shards.plan import SPLITS, Entry
from shards.sources.offer import DatasetSource, Offer
from shards.sources.published import Part, find, hold_out, missing_download, parse_labels, read_list

CANYON = ("canyon", 81)  # its number in categories_places365.txt
FILELISTS = ("filelist_places365-standard.tar", "filelist_places365-challenge.tar")
_EASY = ("places365_standard",), ("places365standard_easyformat.tar",)


def entries(
    source: Path, holdout: float, variant: str = "standard", only: tuple[str, int] | None = None
) -> Iterator[Entry]:
    """Yield all images of one resolution; with `only`, the train and val images of a category.

    `holdout` of train becomes val if there is no val. For `only` it becomes the split `holdout`,
    because MUSICAL tests on val. Raises ValueError if `source` is not such a download, or holds
    more than one resolution.
    """
    parts = _parts(source, variant)
    images = _all(source, variant, parts) if only is None else _some(source, variant, parts, only)
    root = source if source.is_dir() else source.parent
    if only is not None:
        yield from hold_out(images, root, holdout, "holdout")
        return
    yield from hold_out(images, root, holdout, published=[split for split, _ in parts])


def _all(source: Path, variant: str, parts: list[tuple[str, Part]]) -> Iterator[Entry]:
    for split, part in parts:
        label = _labeller(source, split, variant)
        for entry, name in _images(split, part):
            yield entry._replace(label=label(name))


def _some(
    source: Path, variant: str, parts: list[tuple[str, Part]], only: tuple[str, int]
) -> Iterator[Entry]:
    name, number = only
    for split, part in parts:
        if split == "test":  # has no published labels
            continue
        wanted: set[str] = set()
        for entry, path in _images(split, part):
            if "/" not in path and not wanted:  # no class folder: use the list
                wanted = _named(source, split, variant, number)
            if path in wanted or _category(path) == name:
                yield entry._replace(label=number)


def _named(source: Path, split: str, variant: str, number: int) -> set[str]:
    """Return the file names of a category in the list of the split; ValueError without a list."""
    name = _list_file(split, variant)
    listed = parse_labels(read_list(source, name, FILELISTS) or (), name)
    names = {path for path, label in listed.items() if label == number}
    if not names:
        wanted = f"{name} (or {FILELISTS[variant == 'challenge']})"
        raise missing_download(source, f"{wanted}, which lists category {number} in {split}")
    return names


def _list_file(split: str, variant: str) -> str:
    return f"places365_train_{variant}.txt" if split == "train" else "places365_val.txt"


# --- where the images are -------------------------------------------------------------------------


def _parts(source: Path, variant: str) -> list[tuple[str, Part]]:
    """Return (split, part) of the one resolution at `source`."""
    parts: dict[str, list[tuple[str, Part]]] = {}
    for size in ("large", "256"):
        places = {
            "train": (
                (f"data_{size}", f"data_{size}_{variant}"),
                (f"train_{size}_places365{variant}.tar",),
            ),
            "val": ((f"val_{size}",), (f"val_{size}.tar",)),
            "test": ((f"test_{size}",), (f"test_{size}.tar",)),
        }
        for split, (folders, archives) in places.items():
            if part := find(source, folders, archives):
                parts.setdefault(size, []).append((split, part))
    easy = find(source, *_EASY) if variant == "standard" else None
    if easy is not None:
        top = easy.root / easy.archive / easy.folder
        present = [split for split in ("train", "val") if top.is_file() or (top / split).is_dir()]
        parts["easyformat"] = [(split, easy) for split in present]
    if not parts:
        wanted = f"train_large_places365{variant}.tar or train_256_places365{variant}.tar"
        raise missing_download(source, f"{wanted}, or data_large/ or data_256/ as they unpack")
    if len(parts) > 1:
        raise ValueError(
            f"{source} contains {' and '.join(parts)}, but a set has one resolution: give a folder "
            "with links to one of them"
        )
    return next(iter(parts.values()))


def _images(split: str, part: Part) -> Iterator[tuple[Entry, str]]:
    """Yield the images of a part, with their paths below its top folder or its split's folder."""
    for file in part.images():
        names = file.path.decode("utf-8", "backslashreplace").split("/")
        if names[0] == "places365_standard":
            if len(names) < 3 or names[1] != split or split not in SPLITS:
                continue
            names = names[1:]
        yield part.entry(split, file), "/".join(names[1:])


# --- labels ---------------------------------------------------------------------------------------


def _category(path: str) -> str:
    """`a/airfield/1.jpg` and `airfield/1.jpg` → airfield; nested names are joined by a dash."""
    folders = path.split("/")[:-1]
    return "-".join(folders[1:] if folders and len(folders[0]) == 1 else folders)


def _labeller(source: Path, split: str, variant: str) -> Callable[[str], int]:
    """Return the published label of a path below the split's folder, -1 where there is none."""
    if split == "test":
        return lambda path: -1
    list_file = _list_file(split, variant)
    listed = read_list(source, list_file, FILELISTS)
    by_name = {} if listed is None else parse_labels(listed, list_file)
    categories = read_list(source, "categories_places365.txt", FILELISTS)
    if categories is not None:
        named = parse_labels(categories, "categories_places365.txt")
        by_category = {_category(f"{name}/_"): number for name, number in named.items()}
    else:
        by_category = {_category(name): number for name, number in by_name.items()}
    by_category.pop("", None)
    by_name = {name: number for name, number in by_name.items() if "/" not in name}

    def label(path: str) -> int:
        return by_category.get(_category(path), by_name.get(path, -1))

    return label


# --- the downloads --------------------------------------------------------------------------------

_PAGE = "http://places2.csail.mit.edu/download.html"
_TERMS = "the terms on that page: research and education, no redistribution of images"
_PAPER = "Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2018"
_LISTS = ("filelist_places365-{}.tar", "lists of names and labels, categories_places365.txt")


def _offer(title: str, variant: str, large: str, small: str, train: int) -> Offer:
    rows = [
        (f"train_large_places365{variant}.tar", f"{large}, short side up to 512; data_large/"),
        ("val_large.tar", "2.1 GB; val_large/"),
        ("test_large.tar", "19 GB; test_large/, without labels"),
        (f"train_256_places365{variant}.tar", f"{small}, 256x256; data_256/"),
        ("val_256.tar", "501 MB; val_256/"),
        ("test_256.tar", "4.4 GB; test_256/, without labels"),
    ]
    if variant == "standard":
        rows.append(
            ("places365standard_easyformat.tar", "256x256, train/ and val/ in class folders")
        )
    rows.append((_LISTS[0].format(variant), _LISTS[1]))
    accepts = "the folder with one resolution's archives (or what they unpack to) and the lists"
    counts = {"train": train, "val": 36_500, "test": 328_500}
    return Offer(title, _PAGE, _TERMS, tuple(rows), accepts, _PAPER, counts)


_STANDARD = _offer("Places365-Standard (Places2)", "standard", "105 GB", "24 GB", 1_803_460)
STANDARD = DatasetSource(_STANDARD, entries)
CHALLENGE = DatasetSource(
    _offer("Places365-Challenge 2016", "challenge", "476 GB", "108 GB", 8_026_628),
    partial(entries, variant="challenge"),
)
CANYON_SCENES = DatasetSource(
    Offer(
        "Places365-Standard, the category canyon (as MUSICAL trains on it)",
        _PAGE,
        _TERMS,
        _STANDARD.files,
        _STANDARD.accepts
        + "; the paper tests on val, so checkpoints are selected on data.holdout= of train",
        _PAPER,
        {"train": 5_000, "val": 100},
    ),
    partial(entries, only=CANYON),
)
