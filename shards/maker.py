"""The threads that make batches: which samples come next, who makes which, where they go.

Batches are issued in order and made in chunks by whichever thread is free; each chunk is read,
decoded and masked straight into the batch's memory.
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

CHUNK = 8  # samples that a thread takes at a time: fewer, and handing them out costs
PLAN_AHEAD = 8192  # samples planned beyond what is issued, at most
_CROP = 3  # domain of the crop's random bits
_CLOSED = "the stream is closed: make a new one at its position"


class Batch(NamedTuple):
    """This rank's share of one global batch."""

    images: torch.Tensor  # uint8 N×H×W×3, RGB
    masks: torch.Tensor  # uint8 N×H×W, 1 = hole
    keys: torch.Tensor  # int64 N
    position: int  # samples of all ranks consumed once this batch is used: the state to save


class Share(NamedTuple):
    batch: int
    rank: int
    world_size: int


class _SampleRef(NamedTuple):
    held: OpenWindow
    turn: int
    epoch: int


@dataclass(eq=False)
class _PendingBatch:
    """One batch on its way."""

    picks: list[_SampleRef]
    position: int
    images: np.ndarray
    masks: np.ndarray | None
    keys: np.ndarray
    given: int = 0
    left: int = 0
    errors: list[BaseException] = field(default_factory=list)


class _BufferPool:
    """Batch arrays, used again once nobody holds the tensor: fresh pages cost 10 % of a decode."""

    def __init__(self, *shape: int) -> None:
        self.shape, self._free = shape, deque[np.ndarray]()

    def take(self) -> np.ndarray:
        whole = self._free.popleft() if self._free else np.empty(self.shape, np.uint8)
        view = whole[:]  # what the tensor will hold on to, and its slices not
        weakref.finalize(view, self._free.append, whole).atexit = False
        return view


class BatchMaker:
    """The threads' shared state; knows no `Stream`, so that one that is dropped closes it."""

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
        self._held: dict[int, tuple[Window, OpenWindow]] = {}  # of each lane
        self._planned: deque[tuple[list[_SampleRef], int]] = deque()
        self._tickets: deque[_PendingBatch] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._started = False
        self._scratch = decode.Scratch()
        self._threads = [
            threading.Thread(target=self._work, name=f"shards-decode-{n}", daemon=True)
            for n in range(threads)
        ]

    def next(self) -> Batch:
        """The next batch. Raises what went wrong with it, and is closed then."""
        ticket = self._wait() if self._threads else self._make()
        if ticket.errors:
            self.close()
            raise ticket.errors[0]
        return _finish(ticket)

    def _wait(self) -> _PendingBatch:
        with self._wake:
            if not self._started:
                self._started = True
                for thread in self._threads:
                    thread.start()
            while not self._closed and not (self._tickets and not self._tickets[0].left):
                self._wake.wait()
            if self._closed:
                raise ValueError(_CLOSED)
            self._wake.notify_all()
            return self._tickets.popleft()

    def _make(self) -> _PendingBatch:
        """A batch made here and now, where there are no threads."""
        if self._closed:
            raise ValueError(_CLOSED)
        ticket = self._issue()
        try:
            self._fill(ticket, 0, len(ticket.picks), self._scratch)
        except Exception as error:
            ticket.errors.append(error)
        return ticket

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._tickets.clear()
            self._wake.notify_all()
        self.reader.close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=5)

    def _work(self) -> None:
        scratch = decode.Scratch()
        while (claim := self._claim()) is not None:
            ticket, low, high = claim
            try:
                self._fill(ticket, low, high, scratch)
            except BaseException as error:
                ticket.errors.append(error)
            with self._wake:
                ticket.left -= high - low
                if not ticket.left:
                    self._wake.notify_all()
            del claim, ticket  # or this thread would keep the batch's memory

    def _claim(self) -> tuple[_PendingBatch, int, int] | None:
        """The next samples to make, in the order of need; waits while enough is under way."""
        with self._wake:
            while not self._closed:
                for ticket in self._tickets:
                    if ticket.given < len(ticket.picks):
                        low = ticket.given
                        ticket.given = min(low + CHUNK, len(ticket.picks))
                        return ticket, low, ticket.given
                if len(self._tickets) <= self.prefetch:
                    self._tickets.append(self._issue())
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
        """Which samples this rank makes of the next global batch; tells the reader."""
        picks = []
        for position in rank_positions(self.position, *self.share):
            number, place = divmod(position, self.order.total)
            if number not in self._epochs:
                self._epochs = {number: self.order.epoch(number)}
            window, nth = self._epochs[number].window(place)
            lane = place % self.order.lanes
            known = self._held.get(lane)
            if known is None or known[0] is not window:
                uses = -(-(len(window.order) - nth) // self.stride)
                known = self._held[lane] = window, self.reader.expect(window, uses)
            picks.append(_SampleRef(known[1], nth, number))
        self.position += self.share.batch
        return picks, self.position

    def _fill(self, ticket: _PendingBatch, low: int, high: int, scratch: decode.Scratch) -> None:
        seed = self.order.seed
        epochs = {pick.epoch for pick in ticket.picks[low:high]}
        crops = {epoch: mix(seed, epoch, _CROP) for epoch in epochs}
        picks = ticket.picks[low:high]
        samples = [pick.held.take(pick.turn) for pick in picks]  # first, so that caches stay warm
        for place, pick, sample in zip(range(low, high), picks, samples):
            ticket.keys[place] = sample.key
            try:
                decode.decode_crop(
                    sample.data,
                    self.crop,
                    mix(sample.key, state=crops[pick.epoch]),
                    ticket.images[place],
                    scratch,
                    sample.plain,
                    (sample.height, sample.width),
                )
            except ValueError as error:
                where = self.reader.indexes.where(sample.shard, sample.row)
                raise ValueError(f"{where}: {error}") from error
            if ticket.masks is not None and self.holes is not None:
                ticket.masks[place] = self.holes(seed, pick.epoch, sample.key)


def _finish(ticket: _PendingBatch) -> Batch:
    images, keys = torch.from_numpy(ticket.images), torch.from_numpy(ticket.keys)
    if ticket.masks is None:
        masks = torch.zeros((), dtype=torch.uint8).expand(images.shape[:3])
    else:
        masks = torch.from_numpy(ticket.masks)
    return Batch(images, masks, keys, ticket.position)
