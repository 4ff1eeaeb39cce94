"""Any folder, tar or zip of images: `train/ val/ test/` inside, or a share held out by content."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.plan import Entry
from shards.sources import splits
from shards.sources.files import File, images, is_archive, list_files
from shards.sources.offer import DatasetSource, Offer, say
from shards.sources.published import hold_out


def entries(source: Path, holdout: float) -> Iterator[Entry]:
    """Yield the images of `source` by split folder; without val, `holdout` of train becomes val.

    Leading folders that all images share are left out of the names, so that a folder and its
    archive make the same set. Raises ValueError if names look like splits but are ambiguous.
    """
    root, archive = (source, "") if source.is_dir() else (source.parent, source.name)
    folders, archives, mixed = _survey(source)
    _refuse_archives(source, folders, archives)
    leading = _leading(folders)
    prefix = "".join(f"{name}/" for name in leading)
    folders = Counter({folder[len(prefix) :]: count for folder, count in folders.items()})
    tops: Counter[str] = Counter()
    for folder, count in folders.items():
        tops[folder.partition("/")[0] + "/"] += count
    images_here = tops.pop("/", 0)
    split_of = splits.assign(tops, str(source), whole=True)
    if split_of:
        _refuse_without_train(source, split_of)
    elif mixed:
        raise splits.ambiguous(mixed, str(source))
    else:
        _refuse_unsplit(source, leading, folders)
    _report(split_of, tops, images_here, archives)
    where = archive or "/".join(leading)

    def listed() -> Iterator[Entry]:
        for file in images(list_files(source)):  # again, instead of kept in memory
            path = file.path[len(prefix.encode()) :]
            split = split_of.get(_decoded(path.partition(b"/")[0]) + "/") if b"/" in path else None
            if split or not split_of:
                yield Entry(split or "train", path, file.size, -1, where, file.offset)

    yield from hold_out(listed(), root, holdout, published=split_of.values())


def _survey(source: Path) -> tuple[Counter[str], set[str], list[str]]:
    """Count the images in each folder, and list the archives at the top of `source`.

    Third: an image of each split, if the names of most images have one, and not all the same.
    """
    folders, archives = Counter[str](), set[str]()
    named, first = 0, dict[frozenset[str], str]()

    def others() -> Iterator[File]:
        for file in list_files(source):
            if b"/" not in file.path and splits.ARCHIVE.search(name := _decoded(file.path)):
                archives.add(name)
            else:
                yield file

    for file in images(others(), say):
        folder, _, name = _decoded(file.path).rpartition("/")
        folders[folder] += 1
        if kinds := splits.kinds(name):
            named += 1
            first.setdefault(kinds, name)
    mixed = len(first) > 1 and 2 * named > folders.total()
    return folders, archives, list(first.values()) if mixed else []


def _decoded(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _leading(folders: Counter[str]) -> list[str]:
    """Return the folders that all images share, outermost first."""
    shared: list[str] = []
    for names in zip(*(folder.split("/") for folder in folders)):
        name = names[0]
        if len(set(names)) > 1 or not name or is_archive(name) or not name.isprintable():
            break
        shared.append(name)
    return shared


def _refuse_archives(source: Path, folders: Iterable[str], archives: set[str]) -> None:
    """Raise ValueError if an archive that is not also unpacked looks like a split."""
    tops = {folder.partition("/")[0] + "/" for folder in folders if folder}
    packed = {name for name in archives if f"{splits.ARCHIVE.sub('', name)}/" not in tops}
    split_of = splits.assign(tops | packed, str(source), whole=True) if packed else {}
    if packed & set(split_of):
        raise splits.ambiguous(split_of, str(source))


def _refuse_unsplit(source: Path, leading: list[str], folders: Iterable[str]) -> None:
    """Raise ValueError if the names of folders show that not all images are train.

    An archive with the name of its top folder is that folder: val.tar is val/.
    """
    own = leading[:1] == [splits.ARCHIVE.sub("", source.name)] and not source.is_dir()
    for name in leading[own:]:
        _refuse_without_train(source, splits.assign([f"{name}/"], str(source), whole=True))
    splits.check_nested(folders, str(source))


def _refuse_without_train(source: Path, split_of: dict[str, str]) -> None:
    if split_of and "train" not in split_of.values():
        raise ValueError(
            f"{source} has {', '.join(sorted(split_of))} but no train/: add train/ or rename them"
        )


def _report(
    split_of: dict[str, str], tops: Counter[str], images_here: int, archives: set[str]
) -> None:
    """Print the split of folders with other names, and the skipped files."""
    renamed = [f"{n} is {split}" for n, split in sorted(split_of.items()) if n != f"{split}/"]
    if renamed:
        say(f"splits: {', '.join(renamed)}")
    left = [f"{name} ({tops[name]} images)" for name in sorted(set(tops) - set(split_of))]
    left += [f"{images_here} images next to the split folders"] if images_here else []
    left = [*(left if split_of else []), *sorted(archives)]
    if left:
        say(f"skipped: {', '.join(left[:12])}{', ...' if len(left) > 12 else ''}")


SOURCE = DatasetSource(
    Offer(
        title="Any folder of images",
        page="(yours)",
        license="(yours)",
        files=(
            ("train/ val/ test/", "folders of images, nested as you like; only train/ is needed"),
            ("or any images", "without val/, data.holdout of them (by content hash) become val"),
        ),
        accepts="the folder, or a .tar or .zip of it",
    ),
    entries,
)
