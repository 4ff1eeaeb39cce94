"""The rows of `bench loader`: each reads an epoch, batch by batch, and yields the batch sizes."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.bench.images import SIDE
from shards.decode import Crop
from shards.fetch import open_reader
from shards.manifest import Manifest
from shards.masks import MaskPolicy
from shards.stream import Stream, order_of

BATCH = 64
PER_SHARD = 5000  # 64 MB

Row = Callable[[], Iterator[int]]


# --- images ---------------------------------------------------------------------------------------


def loose_files(local: Manifest, folder: Path) -> list[str]:
    """Write the same images as files; returns their paths."""
    folder.mkdir()
    paths = []
    for key, encoded in enumerate(_encoded(local)):
        paths.append(str(folder / f"{key:09d}.jpg"))
        Path(paths[-1]).write_bytes(encoded)
    return paths


def _encoded(local: Manifest) -> list[bytes]:
    reader = open_reader(local, "train")
    return [
        reader.sample(shard, row).data
        for shard, entry in enumerate(reader.indexes.shards)
        for row in range(entry.samples)
    ]


# --- ours -----------------------------------------------------------------------------------------


def ours(manifest: Manifest, threads: int, **settings: int) -> Row:
    """Our stream: whole images, no holes; `settings` as `Stream` takes them."""
    count = manifest.splits["train"].samples // BATCH

    def work() -> Iterator[int]:
        with Stream(
            manifest,
            "train",
            batch=BATCH,
            seed=0,
            crop=Crop(SIDE),
            masks=MaskPolicy("none"),
            threads=threads,
            **settings,
        ) as stream:
            for _ in range(count):
                yield len(next(stream).images)

    return work


def reading(local: Manifest) -> Row:
    """First part of ours: read and check every sample's bytes in the canonical order."""
    count = local.splits["train"].samples // BATCH * BATCH

    def work() -> Iterator[int]:
        reader, epoch = open_reader(local, "train"), order_of(local, "train", 0).epoch(0)
        for place in range(count):
            window, turn = epoch.window(place)
            reader.sample(*window.locate(turn))
            if place % BATCH == BATCH - 1:
                yield BATCH
        reader.close()

    return work


def decoding(local: Manifest) -> Row:
    """Second part of ours: decode JPEG bytes in memory into two batches in turn."""
    images = _encoded(local)
    batches = np.zeros((2, BATCH, SIDE, SIDE, 3), np.uint8)

    def work() -> Iterator[int]:
        count = len(images) // BATCH * BATCH
        for place in range(count):
            out = batches[place // BATCH % 2, place % BATCH]
            simplejpeg.decode_jpeg(images[place], "RGB", buffer=out)
            if place % BATCH == BATCH - 1:
                yield BATCH

    return work


# --- others ---------------------------------------------------------------------------------------


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB"))


def webdataset(local: Manifest, workers: int) -> Row:
    """Plain webdataset on the same tars, shuffled by shard and in a buffer of 1000 samples."""
    from webdataset import WebDataset, WebLoader

    urls = [local.shard_url("train", shard) for shard in local.splits["train"].shards]

    def work() -> Iterator[int]:
        read = WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)
        decoded = read.to_tuple("jpg").map_tuple(_decode)
        batched = decoded.batched(BATCH, collation_fn=_stack, partial=False)
        loader = WebLoader(batched, batch_size=None, num_workers=workers)
        yield from map(len, loader)

    return work


def _stack(samples: list[tuple[np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample[0] for sample in samples]))


class _LooseFiles(Dataset[torch.Tensor]):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        with open(self.paths[place], "rb") as file:
            return torch.from_numpy(_decode(file.read()))


def loose(paths: list[str], workers: int) -> Row:
    """One file per image through torch's DataLoader."""

    def work() -> Iterator[int]:
        dataset = _LooseFiles(paths)
        loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
        yield from map(len, loader)

    return work


_MOSAIC = """
import json, os, resource, sys, time
import numpy as np, simplejpeg, torch
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader
clean_stale_shared_memory()
loose, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
if not os.path.exists(out):
    with MDSWriter(out=out, columns={"jpg": "bytes"}, size_limit=1 << 26) as writer:
        for name in sorted(os.listdir(loose)):
            writer.write({"jpg": open(os.path.join(loose, name), "rb").read()})

class Images(StreamingDataset):
    def __getitem__(self, place):
        return torch.from_numpy(simplejpeg.decode_jpeg(super().__getitem__(place)["jpg"], "RGB"))

torch.set_num_threads(1)
dataset = Images(local=out, shuffle=True, batch_size=batch)
spent = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
for counted in (False, True):
    cpu, wall, count = spent(), time.perf_counter(), 0
    for part in DataLoader(dataset, batch, drop_last=True):
        count += len(part)
print(json.dumps([count, spent() - cpu, time.perf_counter() - wall]))
"""


def mosaic(python: str, folder: Path, times: list[tuple[float, float]]) -> Row:
    """mosaicml-streaming in the environment of `python`.

    It measures itself, after an epoch of warm-up, so that its start does not count: appends
    (CPU seconds, seconds) to `times`.
    """

    def work() -> Iterator[int]:
        done = subprocess.run(
            [python, "-c", _MOSAIC, str(folder / "loose"), str(folder / "mds"), str(BATCH)],
            capture_output=True,
            text=True,
            check=True,
        )
        count, cpu, wall = json.loads(done.stdout.splitlines()[-1])
        times.append((cpu, wall))
        yield int(count)

    return work
