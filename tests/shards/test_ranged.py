"""Ranges by signed URLs, on two S3 servers and behind one that misbehaves."""

import os

import pytest

from shards import store
from shards.ranged import TRUST, Ranges

BYTES = os.urandom(3 << 20)


@pytest.fixture
def ranges():
    made = Ranges(2)
    yield made
    made.close()


def refuse(*_):
    raise AssertionError("the long way was taken")


def test_a_range_comes_by_the_short_way_from_either_server(both, ranges, monkeypatch):
    store.write(f"{both}/a b/ü.tar", BYTES)
    monkeypatch.setattr(store, "read", refuse)
    for start, end in ((0, 1), (5, 1 << 20), (1 << 20, len(BYTES))):
        assert ranges.read(f"{both}/a b/ü.tar", start, end) == BYTES[start:end]


def test_what_is_not_in_the_store_is_said_as_by_the_store(bucket, ranges):
    with pytest.raises(FileNotFoundError):
        ranges.read(f"{bucket}/absent", 0, 5)
    store.write(f"{bucket}/x", BYTES)
    with pytest.raises(EOFError, match="expected"):
        ranges.read(f"{bucket}/x", len(BYTES) - 5, len(BYTES) + 5)


@pytest.mark.parametrize("act", ["status", "reset", "truncate"])
def test_a_fault_on_the_short_way_is_mended_by_the_long(moto, faults, ranges, act):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    faults.set({"act": act, "path": "Signature=", "times": 1})
    assert ranges.read(url, 7, 70_000) == BYTES[7:70_000]
    assert ranges.read(url, 8, 70_000) == BYTES[8:70_000]
    taken = [(act, "Signature=" in path) for _, path, act in faults.log() if "/x" in path]
    assert taken == [(act, True), ("pass", False), ("pass", True)]


def test_a_server_that_takes_no_signed_url_is_soon_asked_for_none(moto, faults, ranges):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    faults.set({"act": "status", "status": 403, "code": "AccessDenied", "path": "Signature="})
    for start in range(TRUST + 3):
        assert ranges.read(url, start, 900) == BYTES[start:900]
    signed = ["Signature=" in path for _, path, _ in faults.log() if "/x" in path]
    assert signed == [True, False] * TRUST + [False] * 3
