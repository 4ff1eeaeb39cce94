"""Object storage, over fsspec's in-memory filesystem: same batches, few and bounded reads."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from shards import external, hashed_stream, store, upkeep
from shards.decode import Crop
from shards.fetch import RemoteReader, open_reader
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.order import Piece, Window
from shards.samples import payload, samples
from shards.stream import Stream, examples
from tests.support.sets import image_set

COUNT = 800


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same set on a disk and in storage."""
    here = tmp_path_factory.mktemp("set")
    image_set(here, COUNT, per_shard=100)
    memory = fsspec.filesystem("memory")
    for path in Path(here).rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/remote/{path.relative_to(here)}", path.read_bytes())
    yield open_manifest(str(here)), open_manifest("memory://remote")
    memory.rm("/remote", recursive=True)


@pytest.fixture
def reads(monkeypatch):
    """(url, start, end) of every read of a tar."""
    asked = []
    whole = store.read

    def counted(url, start=None, end=None):
        if str(url).endswith(".tar"):
            asked.append((url, start, end))
        return whole(url, start, end)

    monkeypatch.setattr(store, "read", counted)
    return asked


def stream(manifest, **settings):
    # few lanes and small blocks, so that a block holds several samples of so small a set
    settings = {"lanes": 12, "block_bytes": 30_000, "threads": 2, "batch": 24, **settings}
    return Stream(manifest, "train", seed=1, crop=Crop(32), masks=MaskPolicy("none"), **settings)


@pytest.mark.parametrize("settings", [{}, {"threads": 0}, {"window": 3}, {"read_ahead": 1}])
def test_storage_and_disk_give_the_same_batches(both, settings):
    here, there = both
    with stream(here, **settings) as left, stream(there, **settings) as right:
        for _ in range(80):
            a, b = next(left), next(right)
            assert torch.equal(a.keys, b.keys) and torch.equal(a.images, b.images)


@pytest.mark.parametrize("world", [1, 4])
def test_an_epoch_reads_each_byte_about_once_in_blocks(both, reads, world):
    ranks = [
        stream(both[1], rank=rank, world_size=world, prefetch=0, read_ahead=0)
        for rank in range(world)
    ]
    for _ in range(COUNT // 24):
        for rank in ranks:
            next(rank)
    for rank in ranks:
        rank.close()
    stored = sum(shard.bytes for shard in both[1].splits["train"].shards)
    asked = sum(end - start for _, start, end in reads)
    assert asked < 1.15 * stored
    assert len(reads) < COUNT / 8  # several samples a request


def test_a_world_that_does_not_divide_the_lanes_reads_more_and_still_all(both, reads):
    with pytest.warns(UserWarning, match="each block is read by 5"):
        ranks = [stream(both[1], rank=r, world_size=5, batch=20) for r in range(5)]
    found = torch.cat([next(rank).keys for _ in range(COUNT // 20) for rank in ranks])
    for rank in ranks:
        rank.close()
    assert sorted(found.tolist()) == list(range(COUNT))


def test_read_ahead_is_bounded(both, reads):
    """Untouched blocks beyond the budget are not read, however long training takes."""
    with stream(both[1], prefetch=0, read_ahead=100_000) as running:
        next(running)
        deadline = threading.Event()
        before = -1
        while before != len(reads):  # until nothing more comes
            before = len(reads)
            deadline.wait(0.3)
        asked = sum(end - start for _, start, end in reads)
    touched = 2 * 24 + 12  # two batches at most, each sample of a block of its own
    assert asked < touched * 40_000 and asked < 12 * 45_000 + 150_000


def test_samples_are_let_go_when_taken(both):
    reader = open_reader(both[1], "train")
    assert isinstance(reader, RemoteReader)
    held = reader.expect(Window(0, 0, 5, (Piece(2, 10, 5),), np.array([4, 0, 3, 1, 2])), 3)
    assert [held.take(nth).row for nth in (0, 1, 2)] == [14, 10, 13]
    assert held.samples.result() == []  # rows 11 and 12 are not this rank's
    reader.close()


def test_closing_wakes_whoever_waits(both):
    before = set(threading.enumerate())
    running = stream(both[1])
    next(running)
    running.close()
    assert not [t for t in set(threading.enumerate()) - before if t.is_alive()]
    with pytest.raises(ValueError, match="closed"):
        next(running)


def test_examples_read_blocks_too(both, reads):
    assert [key for key, _ in examples(both[1], "train", threads=2)] == list(range(COUNT))
    assert len(reads) <= 2 * 8  # shards of less than a block


def test_a_sample_that_stays_wrong_is_named(both):
    url = both[1].shard_url("train", both[1].splits["train"].shards[3])
    memory, path = fsspec.core.url_to_fs(url)
    good = memory.cat_file(path)
    memory.pipe_file(path, good[:5000] + bytes([good[5000] ^ 4]) + good[5001:])
    try:
        with (
            pytest.raises(OSError, match=r"shard-000003.tar: sample \d{9} at byte \d+.*3 times"),
            stream(both[1]) as running,
        ):
            for _ in range(COUNT // 24):
                next(running)
    finally:
        memory.pipe_file(path, good)


@pytest.fixture(scope="module")
def rangeless(tmp_path_factory):
    """(The set at a server of Python's standard library, which ignores Range; its address)."""
    folder = tmp_path_factory.mktemp("web")
    image_set(folder, 100)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield open_manifest(url), url
    server.shutdown()
    server.server_close()


def first_batch(manifest):
    with stream(manifest) as running:
        next(running)


READERS = {
    "training": lambda manifest, url, out: first_batch(manifest),
    "validation": lambda manifest, url, out: next(examples(manifest, "train")),
    "one sample": lambda manifest, url, out: payload(samples(manifest, "train")[3]),
    "indexing": lambda manifest, url, out: external.write(
        str(out), "x", f"{url}/train/shard-000000.tar", lambda _: None
    ),
}


# Row 13
@pytest.mark.parametrize("reader", READERS)
def test_a_server_that_ignores_ranges_is_named_as_such(rangeless, tmp_path, monkeypatch, reader):
    monkeypatch.setattr(hashed_stream, "BLOCK", 4096)
    with pytest.raises(store.StoreError, match=r"tar: the server ignores Range requests") as error:
        READERS[reader](*rangeless, tmp_path)
    assert "changed" not in str(error.value) and "damaged" not in str(error.value)


# Row 13
def test_a_server_that_ignores_ranges_can_still_be_verified(rangeless):
    assert all(not checked.faults for checked in upkeep.verify(rangeless[0], every_byte=True))
