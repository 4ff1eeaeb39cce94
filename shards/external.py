"""Existing WebDataset tars: write an index and a manifest for them and leave the tars unchanged.

Each tar is read once, from start to end. A sample is the first image under a key (the name up to
its first dot, as webdataset groups members); a `.cls` member of the same key is its label.
"""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from braceexpand import braceexpand

from shards import store
from shards.hygiene import Policy, describe, examine
from shards.manifest import COLUMNS
from shards.pack import IndexMeta, Reject, content_hash, index_bytes
from shards.plan import SPLITS, generated_plan, publish
from shards.sources import splits
from shards.sources.files import MAX_BYTES, check_end
from shards.writer import Finished, finish

BLOCK = 16 * 2**20
IMAGES = ("jpg", "jpeg", "png", "webp")
_READ = (".cls", *(f".{ext}" for ext in IMAGES))
_POLICY = Policy()


class SourceError(ValueError):
    """No tars at the source."""


def write(
    out: str,
    name: str,
    source: str,
    say: Callable[[str], None],
    max_reject_rate: float = 0.01,
    holdout: float = 0.0,
) -> Finished:
    """Index the tars of `source` as a set of kind external at `out`.

    `source` is a folder or URL of tars, or a brace pattern; splits follow from folders such as
    val/ or names such as val-0000.tar. Without tars of val, a share `holdout` of the samples of
    train, by content hash, is indexed as val.
    Raises SourceError if there are no tars or one is missing; ValueError for a damaged or empty
    tar, and for more rejects than `max_reject_rate`.
    """
    tars = {split: list(urls) for split, urls in _tars(source, say).items() if urls}
    if not tars:
        raise SourceError(
            f"{store.display(source)}: no .tar there or in train/, val/, test/; give a folder, "
            "a URL or a pattern such as s3://bucket/train-{0000..0099}.tar"
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
    first = 0
    for split, urls in tars.items():
        published = set(store.names(store.join(out, split, "index")))
        share = holdout if split == "train" else 0.0
        for number, url in enumerate(urls):
            file = f"shard-{number:06d}.parquet"
            if file not in published:
                held, index = _index(url, number, first, plan.sha256, share)
                if share:
                    store.write(store.join(out, "val", "index", file), held)
                store.write(store.join(out, split, "index", file), index)
            # ids must be unique before the next tar is read: it has at most one sample per block
            first += sizes[url] // 512
            written.append((split, number, url))
            say(f"{split} {number + 1}/{len(urls)} {store.display(url)}")
    if holdout:
        written += [("val", number, url) for number, url in enumerate(tars["train"])]
    return finish(out, plan, written, max_reject_rate)


def _tars(source: str, say: Callable[[str], None]) -> dict[str, list[str]]:
    """The tars of each split, by their folders, else by their names."""
    if "{" in source:
        return _by_name(source, [_absolute(url) for url in braceexpand(source)])
    if source.endswith(".tar"):
        return _by_name(source, [_absolute(source)])
    base = _absolute(source)
    children = store.names(base)
    tars = _by_name(source, [store.join(base, n) for n in children if n.endswith(".tar")])
    folders: dict[str, list[str]] = {}
    for folder in (name for name in children if "." not in name):
        inside = store.names(store.join(base, folder))
        if urls := [store.join(base, folder, n) for n in inside if n.endswith(".tar")]:
            folders[f"{folder}/"] = urls
    split_of = splits.assign(folders, store.display(source), whole=True)
    for folder, split in sorted(split_of.items()):
        tars[split] = tars.get(split, []) + folders[folder]
    if left := [f"{name} ({len(folders[name])} tars)" for name in folders if name not in split_of]:
        say(f"skipped, not the folder of a split: {', '.join(left)}")
    return {split: tars[split] for split in SPLITS if split in tars}


def _by_name(source: str, urls: list[str]) -> dict[str, list[str]]:
    """The tars of each split by the names below their common folder; without splits, all train."""
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
            f"{store.display(url)}: no such tar; correct source= or its pattern"
        ) from error


# --- one tar --------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    ext: str
    offset: int
    size: int
    data: bytes  # empty if it is not needed, or too large


def _index(
    url: str, number: int, first: int, plan_sha256: str, share: float
) -> tuple[bytes, bytes]:
    """The Parquet indexes of the share held out of one tar, and of the others with the rejects.

    Raises ValueError when the tar is damaged or holds no image.
    """
    stream = _Stream(url)
    rows: list[dict[str, Any]] = []
    rejects: list[list[Any]] = []
    for sample_id, (key, members) in enumerate(_samples(stream, url), start=first):
        image = next((m for m in members if m.ext in IMAGES), None)
        if image is None:
            continue
        verdict = examine(image.name, image.data, _POLICY)
        if image.size > MAX_BYTES:
            verdict = Reject(image.name, "too_large", f"{image.size} bytes, above {MAX_BYTES}")
        if isinstance(verdict, Reject):
            rejects.append([sample_id, *verdict])
            continue
        rows.append(
            {
                "sample_id": sample_id,
                "shard": number,
                "key": key,
                "src": image.name,
                "ext": image.ext,
                "offset": image.offset,
                "size": len(image.data),
                "crc32": zlib.crc32(image.data),
                "content_hash": content_hash(image.data),
                **describe(image.data),
                "label": _label(members),
            }
        )
    if not rows:
        raise ValueError(
            f"{store.display(url)}: no readable image ({len(rejects)} unreadable); "
            f"expected members named KEY.{'|'.join(IMAGES)}"
        )
    splits.check_nested(
        {row["src"].rpartition("/")[0] for row in rows}, f"{store.display(url)} (data=wds)"
    )
    assert set(rows[0]) == set(COLUMNS["external"].names)
    meta = IndexMeta(plan_sha256, stream.sha256(), stream.length, rejects)
    limit = share * 2**64
    held = [row for row in rows if row["content_hash"] < limit]
    kept = [row for row in rows if row["content_hash"] >= limit]
    without = meta._replace(rejects=[])
    return index_bytes("external", held, without), index_bytes("external", kept, meta)


def _label(members: list[_Member]) -> int | None:
    for member in members:
        if member.ext == "cls" and member.data.strip().isdigit():
            return int(member.data)
    return None


def _samples(stream: "_Stream", url: str) -> Iterator[tuple[str, list[_Member]]]:
    """(key, members) of consecutive members with one key, as webdataset groups them."""
    key, group = "", list[_Member]()
    for member in _members(stream, url):
        folder, _, base = member.name.rpartition("/")
        stem, dot, ext = base.partition(".")
        if not dot or not stem:
            continue
        now = f"{folder}/{stem}" if folder else stem
        if now != key and group:
            yield key, group
            group = []
        key = now
        group.append(member._replace(ext=ext.lower()))
    if group:
        yield key, group


def _members(stream: "_Stream", url: str) -> Iterator[_Member]:
    reader = io.BufferedReader(stream, 1 << 20)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.isreg() and not info.issparse():
                    file = tar.extractfile(info)
                    assert file is not None
                    read = info.name.lower().endswith(_READ) and info.size <= MAX_BYTES
                    data = file.read() if read else b""
                    yield _Member(info.name, "", info.offset_data, info.size, data)
                vars(tar)["members"].clear()
            end = int(vars(tar)["offset"])
    except tarfile.TarError as error:
        raise ValueError(f"{store.display(url)}: not a readable tar ({error})") from error
    check_end(reader, end, store.display(url))


class _Stream(io.RawIOBase):
    """An object read block by block, once and in order, and hashed while reading."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.length = store.size(url)
        self._hash = hashlib.sha256()
        self._at = 0
        self._number = -1
        self._block = b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self.length:
            return 0
        block = self._load(self._at // BLOCK)
        start = self._at % BLOCK
        part = block[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def sha256(self) -> str:
        """The sha256 of the whole object; reads the rest of it."""
        self._load(max(0, -(-self.length // BLOCK) - 1))
        return self._hash.hexdigest()

    def _load(self, number: int) -> bytes:
        if number < self._number:  # a seek back into an earlier block: do not hash it again
            return self._fetch(number)
        while self._number < number:
            self._number += 1
            self._block = self._fetch(self._number)
            self._hash.update(self._block)
        return self._block

    def _fetch(self, number: int) -> bytes:
        return store.read(self.url, number * BLOCK, min((number + 1) * BLOCK, self.length))
