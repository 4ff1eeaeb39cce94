"""Endless batches of crops and holes in the canonical order; the state is one integer.

`Stream` is the share of one rank: threads read, decode and mask directly into batch memory,
`prefetch` batches ahead of training (worker processes cost 0.3 ms more per image, measured for
every loader). Do not pass it to `accelerator.prepare()`, which would make rank 0 read for all
ranks. `examples` is one ordered pass, for evaluation.
"""

import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from shards import decode
from shards.fetch import READ_AHEAD, OpenWindow, Reader, open_reader
from shards.lookup import shards_of
from shards.maker import Batch, BatchMaker, Share
from shards.manifest import Manifest
from shards.mask_sets import hole_sampler
from shards.masks import MaskPolicy
from shards.order import (
    BLOCK_BYTES,
    LANES,
    WINDOW,
    Order,
    Piece,
    Window,
    amplification,
    mix,
    rank_positions,
)

__all__ = ["Batch", "Stream", "check_guards", "examples", "order_of"]


class Stream:
    """Yield `Batch` forever, epoch after epoch.

    batch: size of the global batch, a multiple of world_size; each rank yields its share.
    crop, masks: fixed by (seed, epoch, key), so that a resumed run, also on another number of
        ranks, gets the same pixels.
    threads: decoding threads; 0 does all the work in `next()`.
    position: where to resume: `position` of the last used batch.
    prefetch: batches made ahead. read_ahead: bytes, for object storage.
    lanes, window, block_bytes: of the order (`order`); part of the guards.

    Raises ValueError for invalid settings and for an image smaller than the crop; SampleError
    for a sample that cannot be read correctly. The stream is then closed.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        *,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        crop: decode.Crop,
        masks: MaskPolicy,
        threads: int = 1,
        position: int = 0,
        prefetch: int = 2,
        lanes: int = LANES,
        window: int = WINDOW,
        block_bytes: int = BLOCK_BYTES,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        rank_positions(0, batch, rank, world_size)
        if position < 0 or threads < 0 or prefetch < 0:
            raise ValueError(
                f"invalid position={position}, threads={threads}, prefetch={prefetch}: "
                "expected 0 or more"
            )
        order = order_of(manifest, split, seed, lanes, window, block_bytes)
        times = amplification(lanes, world_size)
        if times > 1 and rank == 0:
            warnings.warn(
                f"{world_size} processes do not divide {lanes} lanes: each block is read by "
                f"{times} of them; with {_divisors(lanes, world_size)} processes it is read once",
                stacklevel=2,
            )
        self.position = position
        self._guards = {
            "digest": manifest.digest,
            "split": split,
            "samples": len(order),
            "blocks": int(order.blocks.sum()),
            "seed": seed,
            "lanes": lanes,
            "window": window,
            "block_bytes": block_bytes,
        }
        self._maker = BatchMaker(
            open_reader(manifest, split, read_ahead),
            order,
            Share(batch, rank, world_size),
            crop,
            hole_sampler(masks, crop.size, crop.size),
            position,
            threads,
            prefetch if threads else 0,
        )
        self._close = weakref.finalize(self, self._maker.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._maker.next()
        self.position = batch.position
        return batch

    def guards(self) -> dict[str, Any]:
        """Return the identity of the order that a position belongs to, JSON; see `check_guards`."""
        return dict(self._guards)

    def close(self) -> None:
        """End all threads and drop prefetched batches."""
        self._close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_guards(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError if a saved position belongs to another order, naming the differences."""
    changed = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if changed:
        changes = ", ".join(f"{name} {saved.get(name)} → {now.get(name)}" for name in changed)
        raise ValueError(f"the data position belongs to another order ({changes}): start a new run")


def order_of(
    manifest: Manifest,
    split: str,
    seed: int,
    lanes: int = LANES,
    window: int = WINDOW,
    block_bytes: int = BLOCK_BYTES,
) -> Order:
    """Return the canonical order of a split; no index is read for it."""
    shards = shards_of(manifest, split)
    return Order(
        [shard.samples for shard in shards],
        [shard.bytes for shard in shards],
        seed=seed,
        lanes=lanes,
        window=window,
        block_bytes=block_bytes,
    )


def _divisors(lanes: int, world_size: int) -> str:
    fitting = [size for size in range(1, lanes + 1) if lanes % size == 0]
    below = max(size for size in fitting if size <= world_size)
    above = min((size for size in fitting if size > world_size), default=below)
    return str(below) if above == below else f"{below} or {above}"


def examples(
    manifest: Manifest,
    split: str,
    *,
    crop: decode.Crop | None = None,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    threads: int = 1,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (key, uint8 H×W×3 RGB) once, in stored order: every world_size-th from `rank` on.

    `crop` crops each image, with random choices fixed by its key; None: whole images. `limit`
    counts samples of the whole split, over all ranks; `threads` decode.
    Raises ValueError, SampleError.
    """
    reader = open_reader(manifest, split)

    def make(window: OpenWindow, nth: int) -> tuple[int, np.ndarray]:
        sample = window.take(nth)
        try:
            if crop is None:
                return sample.key, decode.decode(sample.data)
            out = np.empty((crop.size, crop.size, 3), np.uint8)
            decode.decode_crop(
                sample.data, crop, mix(sample.key), out, decode.Scratch(), sample.shape
            )
        except ValueError as error:
            raise ValueError(
                f"{reader.indexes.where(sample.shard, sample.row)}: {error}"
            ) from error
        return sample.key, out

    pool = ThreadPoolExecutor(max(1, threads))
    ahead: deque[Future[tuple[int, np.ndarray]]] = deque()
    try:
        for opened, nth in _in_order(reader, rank, world_size, limit):
            ahead.append(pool.submit(make, opened, nth))
            if len(ahead) > 8 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        reader.close()
        pool.shutdown(cancel_futures=True)


def _in_order(
    reader: Reader, rank: int, world_size: int, limit: int | None
) -> Iterator[tuple[OpenWindow, int]]:
    """Yield this rank's samples in stored order, announced to the reader block by block."""
    place = 0
    for shard, entry in enumerate(reader.indexes.shards):
        step = max(1, BLOCK_BYTES * entry.samples // max(1, entry.bytes))
        for row in range(0, entry.samples, step):
            count = min(step, entry.samples - row)
            stop = count if limit is None else min(count, limit - place)
            mine = range((rank - place) % world_size, stop, world_size)
            if mine:
                window = Window(
                    0, place, place + count, (Piece(shard, row, count),), np.arange(count)
                )
                opened = reader.expect(window, len(mine))
                yield from ((opened, nth) for nth in mine)
            place += count
