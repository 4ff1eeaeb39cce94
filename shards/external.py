"""Index existing WebDataset tars in place: write an index and a manifest, leave the tars unchanged.

Each tar is read once, from start to end. A sample is the first image under a key (the name up to
its first dot, as webdataset groups members); a `.cls` member of the same key is its label. If a
name occurs twice, the last member counts (`tar -r` appends corrections). Images with more than one
dot in their name are rejected, and links whose target is not an earlier image of the tar.
"""

import io
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from braceexpand import braceexpand

from shards import store
from shards.formats import IMAGES, MAX_BYTES
from shards.hashed_stream import HashedStream
from shards.hygiene import Policy, describe, examine
from shards.manifest import COLUMNS
from shards.pack import IndexMeta, Reject, content_hash, index_bytes
from shards.plan import SPLITS, generated_plan, publish
from shards.sources import splits
from shards.sources.files import (
    check_end,
    is_litter,
    kind,
    link_target,
    not_taken,
    unreadable_tar,
)
from shards.writer import Finished, finish

_POLICY = Policy()
_DOTS = "the name has several dots, and its key would end at the first: rename the file"


class SourceError(ValueError):
    """There are no tars at the source."""


def write(
    out: str,
    name: str,
    source: str,
    say: Callable[[str], None],
    max_reject_rate: float = 0.01,
    holdout: float = 0.0,
) -> Finished:
    """Index the tars of `source` as a set of kind external at `out`.

    `source` is a folder or URL of tars, or a brace pattern. Splits are inferred from folders such
    as val/ or names such as val-0000.tar; without tars of val, a share `holdout` of the train
    samples, chosen by content hash, is indexed as val.
    Raises SourceError if there are no tars or one is missing; ValueError for a damaged or empty
    tar, and for more rejects than `max_reject_rate`.
    """
    tars = {split: list(urls) for split, urls in _tars(source, say).items() if urls}
    if not tars:
        raise SourceError(
            f"source={store.display(source)} has no .tar, also not in train/, val/ or test/: give "
            "a folder or URL with tars, or a pattern such as s3://bucket/train-{0000..0099}.tar"
        )
    sizes = {url: _size(url) for urls in tars.values() for url in urls}
    options: dict[str, Any] = {"format": 1, "tars": tars, "sizes": sizes}
    if "val" in tars or "train" not in tars:
        holdout = 0.0
    elif holdout:
        options["holdout"] = holdout
    plan = generated_plan(name, "external", options)
    publish(out, plan)
    written: list[tuple[str, int, str | None]] = []
    first, skipped = 0, Counter[str]()
    for split, urls in tars.items():
        published = set(store.names(store.join(out, split, "index")))
        share = holdout if split == "train" else 0.0
        for number, url in enumerate(urls):
            file = f"shard-{number:06d}.parquet"
            if file not in published:
                held, index = _index(url, number, first, plan.sha256, share, skipped)
                if share:
                    store.write(store.join(out, "val", "index", file), held)
                store.write(store.join(out, split, "index", file), index)
            # Ids are assigned without reading the next tar: one sample takes at least one block.
            first += sizes[url] // 512
            written.append((split, number, url))
            say(f"{split} {number + 1}/{len(urls)} {store.display(url)}")
    if holdout:
        written += [("val", number, url) for number, url in enumerate(tars["train"])]
    if skipped:
        say(not_taken(skipped))
    return finish(out, plan, written, max_reject_rate)


def _tars(source: str, say: Callable[[str], None]) -> dict[str, list[str]]:
    """Return the tars of each split, inferred from their folders, else from their names."""
    if "{" in source:
        return _by_name(source, [_absolute(url) for url in braceexpand(source)])
    if source.endswith(".tar"):
        return _by_name(source, [_absolute(source)])
    base = _absolute(source)
    children = store.names(base)
    tars = _by_name(source, [store.join(base, n) for n in children if n.endswith(".tar")])
    folders: dict[str, list[str]] = {}
    rest = [name for name in children if "." in name]
    for folder in (name for name in children if "." not in name):
        inside = store.names(store.join(base, folder))
        rest += [f"{folder}/{name}" for name in inside]
        if urls := [store.join(base, folder, n) for n in inside if n.endswith(".tar")]:
            folders[f"{folder}/"] = urls
    rest = [n for n in rest if not n.endswith(".tar") and not is_litter(n.encode())]
    if rest:
        say(not_taken(Counter(kind(name.encode()) for name in rest)))
    if packed := [name for name in rest if splits.ARCHIVE.search(name)]:
        say(f"compressed archives are not read; decompress to .tar: {', '.join(packed)}")
    split_of = splits.assign(folders, store.display(source), whole=True)
    for folder, split in sorted(split_of.items()):
        tars[split] = tars.get(split, []) + folders[folder]
    if left := [f"{name} ({len(folders[name])} tars)" for name in folders if name not in split_of]:
        say(f"skipped folders, not named after a split: {', '.join(left)}")
    return {split: tars[split] for split in SPLITS if split in tars}


def _by_name(source: str, urls: list[str]) -> dict[str, list[str]]:
    """Return the tars of each split, inferred from their names; without split names, all train."""
    common = os.path.commonprefix([url.rpartition("/")[0] + "/" for url in urls])
    start = common.rfind("/") + 1
    names = {url: url[start:] for url in urls}
    split_of = splits.assign(names.values(), store.display(source))
    if split_of and len(split_of) < len(set(names.values())):
        raise splits.ambiguous(names.values(), store.display(source))
    tars: dict[str, list[str]] = {}
    for url, name in names.items():
        tars.setdefault(split_of.get(name, "train"), []).append(url)
    return tars


def _absolute(url: str) -> str:
    return os.path.abspath(store.local(url)) if store.is_local(url) else url


def _size(url: str) -> int:
    try:
        return store.size(url)
    except FileNotFoundError as error:
        raise SourceError(
            f"{store.display(url)} does not exist: correct source= or its pattern"
        ) from error


# --- one tar --------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    ext: str
    offset: int
    size: int
    data: bytes  # empty if not needed or too large
    target: str  # the member that a link points to; empty for other members


def _index(
    url: str, number: int, first: int, plan_sha256: str, share: float, skipped: Counter[str]
) -> tuple[bytes, bytes]:
    """Return the Parquet index of a tar's held-out samples, and that of its others and rejects.

    Counts in `skipped` the members that belong to no sample. Raises ValueError for a damaged tar.
    """
    stream = HashedStream(url)
    found: dict[str, dict[str, Any] | list[Any]] = {}  # rows and rejects, by the image's name
    for sample_id, (key, members) in enumerate(_samples(stream, url, skipped), start=first):
        image = next((m for m in members.values() if m.ext in IMAGES), None)
        if image is None:
            for name in members:
                if (reason := kind(name.encode())) in IMAGES:
                    found[name] = [sample_id, name, "name", _DOTS]
                else:
                    skipped[reason] += 1
            continue
        for name, member in members.items():
            if member is not image and kind(name.encode()) in IMAGES:
                skipped["second image of a sample"] += 1
        columns = _columns(image, found)
        row = {"sample_id": sample_id, "shard": number, "key": key, "src": image.name}
        row |= {"ext": image.ext[1:], "label": _label(members)}
        found[image.name] = (
            [sample_id, *columns] if isinstance(columns, Reject) else {**columns, **row}
        )
    rows = [row for row in found.values() if isinstance(row, dict)]
    rows.sort(key=lambda row: row["offset"])
    splits.check_nested(
        {row["src"].rpartition("/")[0] for row in rows}, f"{store.display(url)} (data=wds)"
    )
    assert not rows or set(rows[0]) == set(COLUMNS["external"].names)
    rejects = [reject for reject in found.values() if isinstance(reject, list)]
    meta = IndexMeta(plan_sha256, stream.sha256(), stream.length, rejects)
    limit = share * 2**64
    held = [row for row in rows if row["content_hash"] < limit]
    kept = [row for row in rows if row["content_hash"] >= limit]
    without = meta._replace(rejects=[])
    return index_bytes("external", held, without), index_bytes("external", kept, meta)


def _columns(
    image: _Member, found: dict[str, dict[str, Any] | list[Any]]
) -> dict[str, Any] | Reject:
    """Return the columns that depend on an image's bytes; a link has those of its target."""
    if image.target:
        row = found.get(image.target)
        if isinstance(row, dict):
            return row
        return Reject(image.name, "link", f"its target {image.target!r} is not an earlier image")
    if image.size > MAX_BYTES:
        return Reject(image.name, "too_large", f"{image.size} bytes; at most {MAX_BYTES}")
    verdict = examine(image.name, image.data, _POLICY)
    if isinstance(verdict, Reject):
        return verdict
    return {
        "offset": image.offset,
        "size": len(image.data),
        "crc32": zlib.crc32(image.data),
        "content_hash": content_hash(image.data),
        **describe(image.data),
    }


def _label(members: dict[str, _Member]) -> int | None:
    for member in members.values():
        if member.ext == ".cls" and member.data.strip().isdigit():
            return int(member.data)
    return None


def _samples(
    stream: HashedStream, url: str, skipped: Counter[str]
) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield (key, members by name) of consecutive members with one key, as webdataset does."""
    key, group = "", dict[str, _Member]()
    for member in _members(stream, url):
        if is_litter(member.name.encode()):
            continue
        folder, _, base = member.name.rpartition("/")
        stem, dot, ext = base.partition(".")
        if not dot:
            skipped["without suffix"] += 1
            continue
        now = f"{folder}/{stem}" if folder else stem
        if now != key and group:
            yield key, group
            group = {}
        key = now
        group[member.name] = member._replace(ext=f".{ext.lower()}")
    if group:
        yield key, group


def _members(stream: HashedStream, url: str) -> Iterator[_Member]:
    reader = io.BufferedReader(stream, 1 << 20)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as tar:
            while (info := tar.next()) is not None:
                data = b""
                if info.isreg() and not info.issparse():
                    file = tar.extractfile(info)
                    assert file is not None
                    wanted = kind(info.name.encode("utf-8", "surrogateescape")) in (*IMAGES, ".cls")
                    data = file.read() if wanted and info.size <= MAX_BYTES else b""
                if not info.isdir():
                    name, target = _readable(info.name), _readable(link_target(info))
                    yield _Member(name, "", info.offset_data, info.size, data, target)
                vars(tar)["members"].clear()
            end = int(vars(tar)["offset"])
    except tarfile.TarError as error:
        raise unreadable_tar(store.display(url), reader, error) from error
    check_end(reader, end, store.display(url))


def _readable(name: str) -> str:
    """Return a name with backslash escapes for bytes that are not UTF-8: an index holds text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
