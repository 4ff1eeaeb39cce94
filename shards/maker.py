"""Make batches in threads: choose samples, distribute them over the threads, fill the batch.

Batches are planned in order and made in chunks by any free thread; each chunk is read, decoded and
masked directly into the memory of the batch.
"""

import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from shards import decode
from shards.fetch import OpenWindow, Reader
from shards.mask_sets import HoleSampler
from shards.order import Epoch, Order, Window, amplification, mix, rank_positions

CHUNK = 8  # samples per claim of a thread; smaller chunks cost more locking
PLAN_AHEAD = 8192  # samples planned ahead of the pending batches, at most
_CROP = 3  # domain of the crop's random bits
_CLOSED = "the stream is closed: open a new one at its position"


class Batch(NamedTuple):
    """This rank's share of one global batch."""

    images: torch.Tensor  # uint8 N×H×W×3, RGB
    masks: torch.Tensor  # uint8 N×H×W, 1 = hole
    keys: torch.Tensor  # int64 N
    position: int  # samples used by all ranks up to and with this batch: the state to save


class Share(NamedTuple):
    batch: int
    rank: int
    world_size: int


class _SampleRef(NamedTuple):
    window: OpenWindow
    turn: int
    epoch: int


@dataclass(eq=False)
class _PendingBatch:
    """A batch that is being made."""

    picks: list[_SampleRef]
    position: int
    images: np.ndarray
    masks: np.ndarray | None
    keys: np.ndarray
    given: int = 0
    left: int = 0
    errors: list[BaseException] = field(default_factory=list)


class _BufferPool:
    """Batch arrays, reused once their tensor is freed: fresh pages cost 10 % of a decode."""

    def __init__(self, *shape: int) -> None:
        self.shape, self._free = shape, deque[np.ndarray]()

    def take(self) -> np.ndarray:
        whole = self._free.popleft() if self._free else np.empty(self.shape, np.uint8)
        view = whole[:]  # referenced by the tensor; its end frees `whole` for reuse
        weakref.finalize(view, self._free.append, whole).atexit = False
        return view


class BatchMaker:
    """State shared by the threads; has no reference to its `Stream`, which closes it when freed."""

    def __init__(
        self,
        reader: Reader,
        order: Order,
        share: Share,
        crop: decode.Crop,
        holes: HoleSampler | None,
        position: int,
        threads: int,
        prefetch: int,
    ) -> None:
        self.reader, self.order, self.share = reader, order, share
        self.crop, self.holes = crop, holes
        self.position, self.prefetch = position, prefetch
        self.stride = amplification(order.lanes, share.world_size)
        count = share.batch // share.world_size
        self._images = _BufferPool(count, crop.size, crop.size, 3)
        self._masks = _BufferPool(count, crop.size, crop.size)
        self._epochs: dict[int, Epoch] = {}
        self._windows: dict[int, tuple[Window, OpenWindow]] = {}  # by lane
        self._planned: deque[tuple[list[_SampleRef], int]] = deque()
        self._pending: deque[_PendingBatch] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._started = False
        self._scratch = decode.Scratch()
        self._threads = [
            threading.Thread(target=self._work, name=f"shards-decode-{n}", daemon=True)
            for n in range(threads)
        ]

    def next(self) -> Batch:
        """Return the next batch. After an error in it, raises the error and closes."""
        pending = self._wait() if self._threads else self._make()
        if pending.errors:
            self.close()
            raise pending.errors[0]
        return _finish(pending)

    def _wait(self) -> _PendingBatch:
        with self._wake:
            if not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
            while not self._closed and not (self._pending and not self._pending[0].left):
                self._wake.wait()
            if self._closed:
                raise ValueError(_CLOSED)
            self._wake.notify_all()
            return self._pending.popleft()

    def _make(self) -> _PendingBatch:
        """Make a batch in the calling thread."""
        if self._closed:
            raise ValueError(_CLOSED)
        pending = self._issue()
        try:
            self._fill(pending, 0, len(pending.picks), self._scratch)
        except Exception as error:
            pending.errors.append(error)
        return pending

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._pending.clear()
            self._wake.notify_all()
        self.reader.close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=5)

    def _work(self) -> None:
        scratch = decode.Scratch()
        while (claim := self._claim()) is not None:
            pending, low, high = claim
            try:
                self._fill(pending, low, high, scratch)
            except BaseException as error:
                pending.errors.append(error)
            with self._wake:
                pending.left -= high - low
                if not pending.left:
                    self._wake.notify_all()
            del claim, pending  # free the batch's memory while waiting

    def _claim(self) -> tuple[_PendingBatch, int, int] | None:
        """Return the next samples to make, in order; waits while enough batches are pending."""
        with self._wake:
            while not self._closed:
                for pending in self._pending:
                    if pending.given < len(pending.picks):
                        low = pending.given
                        pending.given = min(low + CHUNK, len(pending.picks))
                        return pending, low, pending.given
                if len(self._pending) <= self.prefetch:
                    self._pending.append(self._issue())
                    self._wake.notify_all()
                else:
                    self._wake.wait()
            return None

    def _issue(self) -> _PendingBatch:
        try:
            picks, position = self._planned.popleft() if self._planned else self._plan()
            errors: list[BaseException] = []
            while self.reader.wants_more() and len(self._planned) * len(picks) < PLAN_AHEAD:
                self._planned.append(self._plan())
        except (ValueError, OSError) as error:
            picks, position, errors = [], self.position, [error]
        keys = np.empty(len(picks), np.int64)
        left = len(picks)
        images = self._images.take()
        masks = None if self.holes is None else self._masks.take()
        return _PendingBatch(picks, position, images, masks, keys, left=left, errors=errors)

    def _plan(self) -> tuple[list[_SampleRef], int]:
        """Choose this rank's samples of the next global batch and announce them to the reader."""
        picks = []
        for position in rank_positions(self.position, *self.share):
            number, place = divmod(position, self.order.total)
            if number not in self._epochs:
                self._epochs = {number: self.order.epoch(number)}
            window, nth = self._epochs[number].window(place)
            lane = place % self.order.lanes
            opened = self._windows.get(lane)
            if opened is None or opened[0] is not window:
                uses = -(-(len(window.order) - nth) // self.stride)
                opened = self._windows[lane] = window, self.reader.expect(window, uses)
            picks.append(_SampleRef(opened[1], nth, number))
        self.position += self.share.batch
        return picks, self.position

    def _fill(self, pending: _PendingBatch, low: int, high: int, scratch: decode.Scratch) -> None:
        seed = self.order.seed
        epochs = {pick.epoch for pick in pending.picks[low:high]}
        crops = {epoch: mix(seed, epoch, _CROP) for epoch in epochs}
        picks = pending.picks[low:high]
        samples = [
            pick.window.take(pick.turn) for pick in picks
        ]  # read all before decoding: caches stay warm
        for place, pick, sample in zip(range(low, high), picks, samples):
            pending.keys[place] = sample.key
            try:
                decode.decode_crop(
                    sample.data,
                    self.crop,
                    mix(sample.key, state=crops[pick.epoch]),
                    pending.images[place],
                    scratch,
                    sample.shape,
                )
            except ValueError as error:
                where = self.reader.indexes.where(sample.shard, sample.row)
                raise ValueError(f"{where}: {error}") from error
            if pending.masks is not None and self.holes is not None:
                pending.masks[place] = self.holes(seed, pick.epoch, sample.key)


def _finish(pending: _PendingBatch) -> Batch:
    images, keys = torch.from_numpy(pending.images), torch.from_numpy(pending.keys)
    if pending.masks is None:
        masks = torch.zeros((), dtype=torch.uint8).expand(images.shape[:3])
    else:
        masks = torch.from_numpy(pending.masks)
    return Batch(images, masks, keys, pending.position)
