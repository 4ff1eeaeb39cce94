"""`bench loader`: our stream vs. webdataset, loose files, mosaicml-streaming and its own parts.

All read the same 256×256 JPEG images, decode them with the same decoder and give batches of 64.
Object storage is nginx, spoken to as S3, where nginx is installed. Memory is measured on a reader
of a set of 1.8 million samples (links to a small one), read in blocks as from object storage.
"""

import contextlib
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.images import SIDE, loose_files, write
from pipeline.bench.loader_rows import BATCH, decode, loose, mosaic, ours, read, webdataset
from pipeline.bench.storage import storage
from pipeline.bench.timing import alternate, compare, report, target
from shards import manifest as manifests
from shards.manifest import Manifest, Split, open_manifest
from shards.order import LANES, Order

HELPERS = 2
PER_SHARD = 5000  # 64 MB
WHOLE = 1_800_000  # Places2
COMPARED = {  # row, baseline, target
    "ours / webdataset": ("ours", "webdataset", 1.25),
    "ours / mosaic": ("ours", "mosaic", 2.0),
    "helped: ours / webdataset": ("ours, helped", "webdataset, helped", 1.0),
    "helped: ours / loose files": ("ours, helped", "loose files, helped", None),
    "storage / local": ("eighth from storage", "eighth", 0.92),
}


def run(images: int = 10_000, repetitions: int = 5, whole: bool = True) -> dict[str, Any]:
    """Measure rows, ratios and the targets of the design.

    whole: plan and read 1.8 million samples too; needs at least 5000 images.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        local = write(folder / "bucket", images, PER_SHARD)
        paths = loose_files(folder / "loose", images)
        rows: dict[str, Callable[[], int]] = {
            "part: read": partial(read, local),
            "part: decode": partial(decode, [path.read_bytes() for path in paths]),
            "ours": partial(ours, local, threads=0),
            "webdataset": partial(webdataset, local, workers=0),
            "ours, helped": partial(ours, local, threads=HELPERS),
            "webdataset, helped": partial(webdataset, local, workers=HELPERS),
            "loose files, helped": partial(loose, paths, workers=HELPERS),
        }
        if server := shutil.which("nginx"):
            stack.enter_context(storage(server, folder))
            # a rank of eight: blocks as large as those of a set of millions
            remote, eighth = open_manifest("s3://bucket"), LANES // 8
            rows["eighth"] = partial(ours, local, threads=0, lanes=eighth)
            rows["eighth from storage"] = partial(ours, remote, threads=0, lanes=eighth)
        if importlib.util.find_spec("streaming"):
            rows["mosaic"] = mosaic(paths, folder / "mds")
        table = alternate(rows, repetitions)
        ratios, targets = compare(table, COMPARED)
        parts = zip(*(row["cpu_seconds"] for row in table[:3]))
        share = statistics.median((read + decode) / ours for read, decode, ours in parts)
        ratios["ours / sum of parts"] = share
        targets["ours / sum of parts"] = target(share, 0.97)
        if whole:
            planning, mib = _planning(), _memory(local, folder / "whole")
            targets["planning 1.8 million, seconds"] = target(planning, 1.0, at_least=False)
            targets["reader of 1.8 million, MiB"] = target(mib, 300, at_least=False)
    work = {
        "images": images,
        "side": SIDE,
        "batch": BATCH,
        "decoder": "simplejpeg, exact",
        "helpers": f"{HELPERS} threads (ours), {HELPERS} processes (others)",
    }
    return report("loader", work, table, ratios, targets)


# --- one process for 1.8 million samples ----------------------------------------------------------


def _planning() -> float:
    """Measure the CPU seconds to plan an epoch of 1.8 million samples."""
    begun = time.process_time()
    count = WHOLE // PER_SHARD
    epoch = Order([PER_SHARD] * count, [PER_SHARD * 13_300] * count, seed=0).epoch(0)
    for lane in range(epoch.order.lanes):
        spot, stop = epoch.lane(lane)
        while spot < stop:
            spot = epoch.window_at(lane, spot).stop
    return time.process_time() - begun


_READER = """
import os, re, sys
from shards.decode import Crop
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream

def memory():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read())[1]) / 1024

before = most = memory()
stream = Stream(open_manifest(sys.argv[1]), "train", batch=64, seed=0, crop=Crop(256),
                masks=MaskPolicy("none"), threads=1)
for step in range(int(sys.argv[2])):
    next(stream)
    if step % 8 == 0:
        most = max(most, memory())
print(most - before, flush=True)
os._exit(0)  # without the interpreter's teardown, which native thread pools race with
"""


def _memory(local: Manifest, folder: Path) -> float:
    """Measure the MiB that reading all lanes of 1.8 million samples adds to a process."""
    shards = [shard for shard in local.splits["train"].shards if shard.samples == PER_SHARD]
    links = []
    (folder / "train/index").mkdir(parents=True)
    for number in range(WHOLE // PER_SHARD):
        shard, name = shards[number % len(shards)], f"shard-{number:06d}"
        os.link(local.shard_url("train", shard), folder / f"train/{name}.tar")
        os.link(local.index_url("train", shard), folder / f"train/index/{name}.parquet")
        links.append(replace(shard, name=f"{name}.tar"))
    split = Split(WHOLE, tuple(links))
    (folder / manifests.FILE).write_bytes(manifests.encode("whole", "images", "", {"train": split}))
    steps = 40_000 // BATCH  # until every lane has used up a block and is inside another
    command = [sys.executable, "-c", _READER, f"local://{folder}", str(steps)]
    return float(subprocess.check_output(command))
