import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from shards.order import Order, amplification, lanes_for, mix, rank_positions, shuffled

# the first five outputs of splitmix64 for seed 1234567, as printed with its reference C code
SPLITMIX = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def order(count=3000, shards=7, *, seed=5, sample_bytes=13_000, **settings):
    samples = [count // shards + (i < count % shards) for i in range(shards)]
    return Order(samples, [n * sample_bytes for n in samples], seed=seed, **settings)


def test_keys_are_the_published_splitmix64_stream():
    assert mix(1234567) == SPLITMIX[0]
    assert shuffled(1234567, 5).tolist() == np.argsort(np.array(SPLITMIX, np.uint64)).tolist()


@pytest.mark.parametrize("count", [1, 2, 191, 192, 193, 400, 3001])
@pytest.mark.parametrize("settings", [{}, {"window": 3}, {"lanes": 1}, {"block_bytes": 60_000}])
def test_every_sample_comes_once_an_epoch(count, settings):
    shards = min(count, 7)
    found = order(count, shards, **settings)
    for epoch in (0, 1):
        seen = Counter(found.epoch(epoch))
        assert set(seen.values()) == {1} and len(seen) == count
        assert all(0 <= row < found.samples[shard] for shard, row in seen)


def test_a_shard_without_samples_is_passed_over():
    found = Order([3, 0, 4], [100, 0, 100], seed=0)
    assert sorted(found.epoch(0)) == [(0, r) for r in range(3)] + [(2, r) for r in range(4)]


def test_places_can_be_asked_for_in_any_order():
    found = order(window=2, block_bytes=100_000)
    forward = list(found.epoch(3))
    again = found.epoch(3)
    backward = [again.locate(place) for place in reversed(range(len(found)))]
    assert backward[::-1] == forward


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(order(300, seed=seed).epoch(epoch)) for seed in (0, 1, 2**63 + 5) for epoch in (0, 1)
    ]
    assert len(set(orders)) == 6
    assert orders[0] == tuple(order(300, seed=0).epoch(0))


def test_the_order_is_the_one_that_saved_positions_belong_to():
    """Changing it silently would make every saved position mean other samples."""
    listed = list(order(5000, 9, block_bytes=120_000, window=2).epoch(1))
    digest = hashlib.sha256(np.array(listed, np.int64).tobytes()).hexdigest()
    assert digest == "b00a9af1e4821f143407c8ad6aa0e44b9718689097ec21f4d68447e1ed81ad77"


def test_lanes_are_equal_and_follow_each_other():
    epoch = order(1000, lanes=48).epoch(0)
    bounds = [epoch.lane(lane) for lane in range(48)]
    assert bounds[0][0] == 0 and bounds[-1][1] == 1000
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:]))
    assert {stop - start for start, stop in bounds} == {20, 21}


@pytest.mark.parametrize(
    ("lanes", "world", "times"),
    [(192, 8, 1), (192, 64, 1), (192, 96, 1), (192, 40, 5), (240, 64, 4)],
)
def test_amplification_is_how_many_ranks_touch_a_lane(lanes, world, times):
    touching = {
        (place % lanes, rank) for rank in range(world) for place in range(rank, 20 * lanes, world)
    }
    assert len(touching) / lanes == times == amplification(lanes, world)


@pytest.mark.parametrize("world", [1, 5, 8, 24, 128, 512])
def test_with_the_lanes_of_a_plan_each_block_is_read_by_one_rank(world):
    def readers(lanes):
        epoch, found = order(20_000, lanes=lanes).epoch(0), {}
        for place in range(len(epoch.order)):
            window, _ = epoch.window(place)
            found.setdefault(window.start, set()).add(place % world)
        return max(map(len, found.values()))

    lanes = lanes_for(world)
    assert readers(lanes) == 1 and 192 <= lanes < 192 + world
    if 192 % world:
        assert readers(192) > 1
    else:
        assert lanes == 192  # as runs had before there was a choice


def test_a_rank_of_a_fitting_world_reads_each_window_alone():
    found = order(6000, window=2, lanes=24, block_bytes=150_000)
    epoch = found.epoch(0)
    readers = {}
    for place in range(6000):
        readers.setdefault(epoch.window(place)[0].start, set()).add(place % 8)
    assert all(len(ranks) == 1 for ranks in readers.values())
    blocks = int(found.blocks.sum())
    pieces = sum(len(epoch.window(p)[0].pieces) for p in _firsts(epoch, 6000))
    assert pieces <= blocks + 24  # a lane's edge may cut a block in two, nothing else does


def _firsts(epoch, count):
    seen = set()
    for place in range(count):
        start = epoch.window(place)[0].start
        if start not in seen:
            seen.add(start)
            yield place


def test_turns_share_a_batch_equally_and_in_order():
    shares = [rank_positions(96, 24, rank, 4) for rank in range(4)]
    assert {len(share) for share in shares} == {6}
    assert sorted(place for share in shares for place in share) == list(range(96, 120))


def test_a_batch_that_cannot_be_shared_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="multiple of 3"):
        rank_positions(0, 16, 0, 3)
    with pytest.raises(ValueError, match="rank=3"):
        rank_positions(0, 16, 3, 3)


def test_neighbors_on_disk_are_spread_over_batches():
    """A set stored class by class gives batches at least as varied as uniform draws would."""
    count, classes, batch = 20_000, 100, 64
    found = order(count, 10)
    starts = np.cumsum([0, *found.samples[:-1]])
    drawn = [(starts[s] + row) * classes // count for s, row in found.epoch(0)]
    distinct = np.mean([len(set(drawn[i : i + batch])) for i in range(0, count - batch, batch)])
    chance = classes * (1 - (1 - 1 / classes) ** batch)  # expected distinct of 64 uniform draws
    assert distinct > chance - 1


def test_even_a_tiny_set_is_shuffled_anew_each_epoch():
    first, second = (list(order(24, 1).epoch(epoch)) for epoch in (0, 1))
    assert first != second and first != sorted(first)
    assert sum(a == b for a, b in zip(first, second)) < 12


def test_settings_below_one_and_empty_splits_are_refused():
    with pytest.raises(ValueError, match="lanes=0"):
        order(lanes=0)
    with pytest.raises(ValueError, match="no samples"):
        Order([], [], seed=0)


@pytest.mark.slow
def test_a_thousand_million_samples_plan_within_two_gib():
    program = (
        "from shards.order import Order\n"
        "n = 50_000; order = Order([20_000] * n, [20_000 * 13_300] * n, seed=0)\n"
        "print(order.epoch(1).locate(987_654_321))\n"
        # getrusage counts what the parent had used, too.
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=170
    )
    assert int(shown.stdout.split()[-1]) < 2 * 2**20  # KiB
