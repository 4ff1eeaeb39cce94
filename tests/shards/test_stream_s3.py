"""Streaming from S3 servers, and through a proxy that fails on purpose."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from shards import store
from shards.decode import Crop
from shards.lookup import SampleError
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream
from tests.support.sets import image_set

pytestmark = pytest.mark.s3
COUNT = 240


def stream(url, **settings):
    settings = {"lanes": 12, "block_bytes": 20_000, "threads": 1, "batch": 24, **settings}
    return Stream(
        open_manifest(url), "train", seed=1, crop=Crop(32), masks=MaskPolicy("none"), **settings
    )


def epochs(url, count=1, **settings):
    with stream(url, **settings) as running:
        return [next(running) for _ in range(count * COUNT // 24)]


def same(left, right):
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.images, b.images)
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What undisturbed reading of the same set from a disk gives."""
    folder = tmp_path_factory.mktemp("set")
    image_set(folder, COUNT, per_shard=60)
    return epochs(str(folder))


def test_each_server_gives_the_batches_of_the_disk(both, here):
    image_set(both, COUNT, per_shard=60)
    assert same(epochs(both), here)


@pytest.mark.parametrize(
    "rule",
    [
        {"act": "status", "status": 503, "code": "SlowDown", "rate": 0.2},
        {"act": "reset", "rate": 0.2},
        {"act": "truncate", "bytes": 700, "rate": 0.2},
        {"act": "flip", "rate": 0.1},
    ],
    ids=lambda rule: rule["act"],
)
def test_passing_faults_change_nothing(faults, here, rule):
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set({"method": "GET", "path": r"\.(tar|parquet)", **rule})
    assert same(epochs(url), here)
    done = [act for _, _, act in faults.log()]
    assert done.count(rule["act"]) >= 3 and done.count("pass") >= 10


def test_a_stalled_read_is_given_up_and_read_again(faults, here):
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set({"method": "GET", "path": r"\.tar", "act": "stall", "seconds": 2, "times": 2})
    assert same(epochs(url), here)
    assert [act for _, _, act in faults.log()].count("stall") == 2


def test_a_byte_that_is_always_flipped_is_an_error_that_names_the_sample(faults):
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set({"method": "GET", "path": r"shard-000002\.tar", "act": "flip"})
    named = r"s3://.*shard-000002.tar: sample \d{9} at byte \d+: its crc32.*3 times"
    with pytest.raises(SampleError, match=named):
        epochs(url)


# Row 13
def test_a_gateway_that_ignores_ranges_is_named_as_such(faults):
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set({"method": "GET", "path": r"\.tar", "act": "whole"})
    with pytest.raises(store.StoreError, match=r"s3://.*tar: the server ignores Range requests"):
        epochs(url)


def test_an_expired_token_is_one_line_without_secrets(faults):
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set({"path": r"\.tar", "act": "status", "status": 400, "code": "ExpiredToken"})
    with pytest.raises(OSError, match="ExpiredToken") as caught:
        epochs(url)
    assert "\n" not in str(caught.value) and faults.server.secret not in str(caught.value)


RANK = """
import signal, sys
from shards.decode import Crop
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream
url, log = sys.argv[1], sys.argv[2]
rank, world, position, last = map(int, sys.argv[3:])
stream = Stream(open_manifest(url), "train", batch=24, rank=rank, world_size=world, seed=1,
                crop=Crop(32), masks=MaskPolicy("none"), threads=2, position=position,
                lanes=12, block_bytes=20_000)
with open(log, "a") as file:
    while stream.position < 480:
        batch = next(stream)
        file.write(f"{batch.position} {' '.join(map(str, batch.keys.tolist()))}\\n")
        file.flush()
        if batch.position == last + 24 * rank:
            signal.pause()  # to be killed, ranks at different steps
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_rank_processes_go_on_to_the_sample_on_other_world_sizes(faults, here, tmp_path):
    """kill -9 of all ranks, again and again, under faults: two epochs, each sample twice."""
    url = faults.server.bucket()
    image_set(url, COUNT, per_shard=60)
    faults.set(
        {"method": "GET", "path": r"\.tar", "act": "status", "status": 503, "rate": 0.1},
        {"method": "GET", "path": r"\.tar", "act": "truncate", "bytes": 700, "rate": 0.1},
        {"method": "GET", "path": r"\.tar", "act": "flip", "rate": 0.05},
    )
    seen, position, kills = {}, 0, 0
    for attempt, world in enumerate((2, 3, 1, 4)):
        logs = [tmp_path / f"{attempt}-{rank}" for rank in range(world)]
        last = position + 5 * 24 if attempt < 3 else 10**9
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, url, log, *map(str, (rank, world, position, last))],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ.copy(),
            )
            for rank, log in enumerate(logs)
        ]
        try:
            lines = 5 if attempt < 3 else 10**9
            while any(p.poll() is None for p in ranks):
                if all(log.exists() and log.read_text().count("\n") >= lines for log in logs):
                    break
                time.sleep(0.05)
        finally:
            for process in ranks:
                kills += process.poll() is None
                process.send_signal(signal.SIGKILL)
                process.wait()
        steps = [_lines(log) for log in logs]
        for saved in sorted(set.intersection(*(set(step) for step in steps))):
            seen[saved] = [key for pair in zip(*(step[saved] for step in steps)) for key in pair]
            position = max(position, saved)
    expected = [batch.keys.tolist() for batch in here]
    found = [seen[position] for position in sorted(seen)]
    assert kills == 6 and sorted(seen) == list(range(24, 481, 24))
    assert found[:10] == expected
    assert sorted(key for batch in found[10:] for key in batch) == list(range(COUNT))


def _lines(log):
    """{position: keys} of the whole lines; a torn last one is not used."""
    whole = log.read_text().rpartition("\n")[0].splitlines()
    return {int(p): [int(key) for key in keys] for p, *keys in (line.split() for line in whole)}
