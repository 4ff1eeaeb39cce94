"""The rows of `bench loader`: each reads an epoch in batches and returns how many images it had."""

from collections.abc import Callable
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


def ours(manifest: Manifest, threads: int, **settings: int) -> int:
    """Open our stream: whole images, no holes; `settings` as `Stream` takes them."""
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
        batches = manifest.splits["train"].samples // BATCH
        return sum(len(next(stream).images) for _ in range(batches))


def read(local: Manifest) -> int:
    """Read and check every sample's bytes in the canonical order: the first part of ours."""
    count = local.splits["train"].samples // BATCH * BATCH
    reader, epoch = open_reader(local, "train"), order_of(local, "train", 0).epoch(0)
    for place in range(count):
        window, turn = epoch.window(place)
        reader.sample(*window.locate(turn))
    reader.close()
    return count


def decode(encoded: list[bytes]) -> int:
    """Decode JPEG bytes in memory into the places of two batches: the second part of ours."""
    count = len(encoded) // BATCH * BATCH
    pixels = np.zeros((2 * BATCH, SIDE, SIDE, 3), np.uint8)
    for place in range(count):
        simplejpeg.decode_jpeg(encoded[place], "RGB", buffer=pixels[place % (2 * BATCH)])
    return count


# --- others ---------------------------------------------------------------------------------------


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB"))


def webdataset(local: Manifest, workers: int) -> int:
    """Read the same tars by plain webdataset, shuffled by shard and among 1000 samples."""
    from webdataset import WebDataset, WebLoader

    urls = [local.shard_url("train", shard) for shard in local.splits["train"].shards]
    samples = WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)
    decoded = samples.to_tuple("jpg").map_tuple(_decode)
    batched = decoded.batched(BATCH, collation_fn=_stack, partial=False)
    return sum(map(len, WebLoader(batched, batch_size=None, num_workers=workers)))


def _stack(samples: list[tuple[np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample[0] for sample in samples]))


class _LooseFiles(Dataset[torch.Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.from_numpy(_decode(self.paths[place].read_bytes()))


def loose(paths: list[Path], workers: int) -> int:
    """Read one file per image through torch's DataLoader."""
    dataset = _LooseFiles(paths)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return sum(map(len, loader))


def mosaic(paths: list[Path], out: Path) -> Callable[[], int]:
    """Read the same images by mosaicml-streaming, written in its own format."""
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Images(StreamingDataset):
        def __getitem__(self, place: int) -> torch.Tensor:
            return torch.from_numpy(_decode(super().__getitem__(place)["jpg"]))

    clean_stale_shared_memory()
    with MDSWriter(out=str(out), columns={"jpg": "bytes"}, size_limit=1 << 26) as writer:
        for path in paths:
            writer.write({"jpg": path.read_bytes()})
    dataset = Images(local=str(out), shuffle=True, batch_size=BATCH)
    return lambda: sum(map(len, DataLoader(dataset, BATCH, drop_last=True)))
