"""The rows of `bench loader`: each reads an epoch, batch by batch, and says how many it read."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from skimage import data
from torch.utils.data import DataLoader, Dataset

from shards import objects
from shards.decode import Crop
from shards.fetch import open_reader
from shards.manifest import Manifest
from shards.masks import MaskPolicy
from shards.pack import PackedSample
from shards.stream import Stream, order_of
from shards.writer import write_set

SIDE, BATCH = 256, 64
PER_SHARD = 5000  # 64 MB

Row = Callable[[], Iterator[int]]


# --- the pictures ---------------------------------------------------------------------------------


def pictures(out: Path, images: int) -> Manifest:
    """A sharded set of crops of scikit-image's photographs, about 13 kB each."""
    splits = {"train": _crops(images)}
    options = {"images": images, "side": SIDE}
    done = write_set(str(out), "bench", "images", splits, options=options, per_shard=PER_SHARD)
    return done.manifest


def _crops(count: int) -> Iterator[PackedSample]:
    random = np.random.default_rng(0)
    photographs = [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    columns = {"width": SIDE, "height": SIDE, "mode": "RGB", "orientation": 1, "label": 0}
    for number in range(count):
        whole = photographs[number % len(photographs)]
        top, left = (random.integers(0, n - SIDE + 1) for n in whole.shape[:2])
        crop = np.ascontiguousarray(whole[top : top + SIDE, left : left + SIDE])
        encoded = simplejpeg.encode_jpeg(crop, quality=82, colorsubsampling="420")
        yield PackedSample(f"{number}.jpg", encoded, "jpg", columns)


def loose_files(local: Manifest, folder: Path) -> list[str]:
    """The same pictures as files."""
    folder.mkdir()
    paths = []
    for key, encoded in enumerate(_payloads(local)):
        paths.append(str(folder / f"{key:09d}.jpg"))
        Path(paths[-1]).write_bytes(encoded)
    return paths


def _payloads(local: Manifest) -> list[bytes]:
    reader = open_reader(local, "train")
    return [
        reader.sample(shard, row).data
        for shard, entry in enumerate(reader.indexes.shards)
        for row in range(entry.samples)
    ]


# --- ours -----------------------------------------------------------------------------------------


def ours(manifest: Manifest, threads: int, **settings: int) -> Row:
    """The stream, every picture whole, no holes; `settings` as `Stream` takes them."""
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
    """Our first part: every sample's bytes in the canonical order, checked."""
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
    """Our second part: bytes in memory into the memory of two batches in turn, nothing else."""
    held = _payloads(local)
    batches = np.zeros((2, BATCH, SIDE, SIDE, 3), np.uint8)

    def work() -> Iterator[int]:
        count = len(held) // BATCH * BATCH
        for place in range(count):
            out = batches[place // BATCH % 2, place % BATCH]
            simplejpeg.decode_jpeg(held[place], "RGB", buffer=out)
            if place % BATCH == BATCH - 1:
                yield BATCH

    return work


# --- others ---------------------------------------------------------------------------------------


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB"))


def webdataset(local: Manifest, workers: int) -> Row:
    """Plain webdataset on the same tars: shards and a buffer of 1000 shuffled, batched inside."""
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


class _Loose(Dataset[torch.Tensor]):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        with open(self.paths[place], "rb") as file:
            return torch.from_numpy(_decode(file.read()))


def loose(paths: list[str], workers: int) -> Row:
    """One file a picture through torch's DataLoader."""

    def work() -> Iterator[int]:
        dataset = _Loose(paths)
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

class Pictures(StreamingDataset):
    def __getitem__(self, place):
        return torch.from_numpy(simplejpeg.decode_jpeg(super().__getitem__(place)["jpg"], "RGB"))

torch.set_num_threads(1)
dataset = Pictures(local=out, shuffle=True, batch_size=batch)
spent = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
for counted in (False, True):
    cpu, wall, count = spent(), time.perf_counter(), 0
    for part in DataLoader(dataset, batch, drop_last=True):
        count += len(part)
print(json.dumps([count, spent() - cpu, time.perf_counter() - wall]))
"""


def mosaic(python: str, folder: Path, shown: list[tuple[float, float]]) -> Row:
    """mosaicml-streaming in the environment of `python`; its own times are added to `shown`.

    An epoch of warm-up comes before the one that counts, so that starting up does not.
    """

    def work() -> Iterator[int]:
        done = subprocess.run(
            [python, "-c", _MOSAIC, str(folder / "loose"), str(folder / "mds"), str(BATCH)],
            capture_output=True,
            text=True,
            check=True,
        )
        count, cpu, wall = json.loads(done.stdout.splitlines()[-1])
        shown.append((cpu, wall))
        yield int(count)

    return work


def _end_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed bench leaves none


@contextlib.contextmanager
def storage(nginx: str, folder: Path) -> Iterator[None]:
    """`folder`'s children as S3 buckets: nginx on a free port of this machine.

    Objects are put, read and removed; a listing is always empty, which is true of a new prefix.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {folder}/nginx;"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # nobody may not read our folder
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}"
        f"http {{ access_log off; sendfile on; client_max_body_size 0; {temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {folder};"
        "dav_methods PUT DELETE; create_full_put_path on;"
        "if ($args ~ list-type) { return 200 '<ListBucketResult/>'; } } }"
    )
    before = dict(os.environ)
    objects.forget()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]
    server = subprocess.Popen(command, cwd=folder, preexec_fn=_end_with_us)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        objects.forget()
        server.terminate()
        server.wait()
