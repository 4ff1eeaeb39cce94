"""The canonical order of samples: pure arithmetic on a split's counts, a seed and an epoch.

No list of samples is stored. A split is cut into blocks of consecutive samples of one shard, about
`block_bytes` each. An epoch permutes the blocks by splitmix64 keys (not NumPy's generators, whose
streams may change between versions), concatenates them, and cuts that line into `lanes` equal
lanes. Inside a lane, the samples of `window` neighboring blocks are permuted together. Position q
of the epoch is sample q // lanes of lane q % lanes.

Every sample thus occurs once per epoch. The order depends only on the manifest and the seed, not on
ranks, threads or where a run stopped. A rank takes every `world_size`-th position; if `world_size`
divides `lanes`, it reads only its own lanes. Memory is O(blocks), 16 bytes per block.
"""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np

LANES = 192  # divisible by 1 2 3 4 6 8 12 16 24 32 48 64 96 192: no read amplification then
WINDOW = 1
BLOCK_BYTES = 1 << 20

_GOLDEN = 0x9E3779B97F4A7C15
_BLOCKS, _INSIDE = 1, 2  # domains of keys: blocks and samples have separate random streams


def mix(*words: int, state: int = 0) -> int:
    """Hash words, each modulo 2**64, to one 64-bit word: splitmix64 (Steele et al. 2014).

    `state` is an earlier result to continue: mix(a, b) is mix(b, state=mix(a)).
    """
    for word in words:
        state = ((state ^ (word & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def shuffled(word: int, count: int) -> np.ndarray:
    """Return a permutation of range(count), int64: the argsort of splitmix64's stream at `word`.

    The stream never repeats within 2**64, so there are no ties and any sort gives this order.
    """
    keys = np.arange(1, count + 1, dtype=np.uint64)
    keys *= np.uint64(_GOLDEN)
    keys += np.uint64(word)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys)


def lanes_for(world_size: int) -> int:
    """Return the lanes of a run planned for `world_size` ranks: the first multiple from 192 on.

    No more than that: a rank keeps a window open in each of its lanes, one rank alone in all.
    """
    return world_size * -(-LANES // world_size)


def amplification(lanes: int, world_size: int) -> int:
    """Return how many ranks read each block of an epoch: 1 if `world_size` divides `lanes`."""
    return world_size // gcd(lanes, world_size)


def rank_positions(position: int, batch: int, rank: int, world_size: int) -> range:
    """Return the positions of `rank` in the global batch that starts at `position`.

    Equally many on all ranks: ValueError unless `world_size` divides `batch`.
    """
    if not 0 <= rank < world_size:
        raise ValueError(
            f"invalid rank={rank}: expected 0..{world_size - 1} (world_size={world_size})"
        )
    if batch < 1 or batch % world_size:
        raise ValueError(
            f"global batch {batch} cannot be shared equally by {world_size} processes: "
            f"use a multiple of {world_size}"
        )
    return range(position + rank, position + batch, world_size)


class Piece(NamedTuple):
    """Consecutive samples of one shard."""

    shard: int
    row: int
    samples: int


class Window(NamedTuple):
    """Samples of one lane that are shuffled and read together."""

    epoch: int
    start: int  # place on the epoch's line, unique to the window in the epoch
    stop: int
    pieces: tuple[Piece, ...]
    order: np.ndarray  # (samples,) int64: place in the lane → place in the concatenated pieces

    def locate(self, turn: int) -> tuple[int, int]:
        """Return (shard, row) of the window's `turn`-th sample."""
        place = int(self.order[turn])
        for piece in self.pieces:
            if place < piece.samples:
                return piece.shard, piece.row + place
            place -= piece.samples
        raise AssertionError("a window's order lies within its pieces")


class Order:
    """The order of every epoch over shards of `samples[i]` samples and `sizes[i]` bytes.

    A small split gets smaller blocks, at least one per lane, so that it is shuffled as well as a
    large one.
    """

    def __init__(
        self,
        samples: Sequence[int],
        sizes: Sequence[int],
        *,
        seed: int,
        lanes: int = LANES,
        window: int = WINDOW,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        for name, value in (("lanes", lanes), ("window", window), ("block_bytes", block_bytes)):
            if value < 1:
                raise ValueError(f"invalid {name}={value}: expected at least 1")
        self.seed, self.lanes, self.window, self.block_bytes = seed, lanes, window, block_bytes
        self.samples = np.asarray(samples, dtype=np.int64)
        self.total = int(self.samples.sum())
        if not self.total:
            raise ValueError("the split has no samples: choose another one, or shard it again")
        largest = max(1, self.total // lanes)
        by_bytes = -(-np.asarray(sizes, dtype=np.int64) // block_bytes)
        by_count = -(-self.samples // largest)
        self.blocks = np.minimum(self.samples, np.maximum(by_bytes, by_count))  # by shard
        self.first = np.concatenate([[0], np.cumsum(self.blocks)])  # each shard's first block

    def __len__(self) -> int:
        return self.total

    def epoch(self, epoch: int) -> "Epoch":
        """Return the order of epoch 0, 1, 2, …: O(blocks) to make and to hold."""
        return Epoch(self, epoch)


class Epoch:
    """The order of one epoch; `locate` and `window` take any place in it."""

    def __init__(self, order: Order, epoch: int) -> None:
        self.order, self.epoch = order, epoch
        self.line = shuffled(mix(order.seed, epoch, _BLOCKS), int(order.first[-1]))
        shard = np.repeat(np.arange(len(order.blocks), dtype=np.int32), order.blocks)[self.line]
        nth = self.line - order.first[shard]
        samples, blocks = order.samples[shard], order.blocks[shard]
        count = (nth + 1) * samples // blocks - nth * samples // blocks
        self.ends = np.concatenate([[0], np.cumsum(count)])
        self._begins = [self.lane(lane)[0] for lane in range(order.lanes)]
        self._current: dict[int, Window] = {}  # by lane

    def lane(self, lane: int) -> tuple[int, int]:
        """Return where a lane starts and stops on the epoch's line."""
        length, longer = divmod(self.order.total, self.order.lanes)
        start = lane * length + min(lane, longer)
        return start, start + length + (lane < longer)

    def locate(self, place: int) -> tuple[int, int]:
        """Return (shard, row) of the epoch's `place`-th sample."""
        window, turn = self.window(place)
        return window.locate(turn)

    def window(self, place: int) -> tuple[Window, int]:
        """Return the window of the epoch's `place`-th sample, and the sample's turn in the window.

        Keeps one window per lane, so that iterating forward makes each window once.
        """
        depth, lane = divmod(place, self.order.lanes)
        spot = self._begins[lane] + depth
        current = self._current.get(lane)
        if current is None or not current.start <= spot < current.stop:
            current = self._current[lane] = self.window_at(lane, spot)
        return current, spot - current.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (shard, row) of every sample, in order."""
        return (self.locate(place) for place in range(self.order.total))

    def window_at(self, lane: int, spot: int) -> Window:
        """Return the lane's window at the line's `spot`."""
        start, stop = self.lane(lane)
        first = int(np.searchsorted(self.ends, start, "right")) - 1
        block = int(np.searchsorted(self.ends, spot, "right")) - 1
        step = self.order.window
        block -= (block - first) % step
        edges = self.ends[block : block + step + 1]
        begin, end = max(start, int(edges[0])), min(stop, int(edges[-1]))
        pieces = []
        for nth in range(len(edges) - 1):
            low, high = max(begin, int(edges[nth])), min(end, int(edges[nth + 1]))
            if low < high:
                shard, row = self._rows(int(self.line[block + nth]))
                pieces.append(Piece(shard, row + low - int(edges[nth]), high - low))
        key = mix(self.order.seed, self.epoch, _INSIDE, begin)
        return Window(self.epoch, begin, end, tuple(pieces), shuffled(key, end - begin))

    def _rows(self, block: int) -> tuple[int, int]:
        """Return (shard, first row) of a block."""
        order = self.order
        shard = int(np.searchsorted(order.first, block, "right")) - 1
        nth = block - int(order.first[shard])
        return shard, nth * int(order.samples[shard]) // int(order.blocks[shard])
