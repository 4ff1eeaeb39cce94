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
from pathlib import Path
from typing import Any

import torch

from pipeline.bench import images as bench_images
from pipeline.bench import loader_rows
from pipeline.bench.images import SIDE
from pipeline.bench.loader_rows import BATCH, PER_SHARD
from pipeline.bench.storage import storage
from pipeline.bench.timing import alternate, faster, report, target
from shards import manifest as manifests
from shards.manifest import Manifest, Shard, Split, open_manifest
from shards.order import LANES, Order

HELPERS = 2
EIGHTH = LANES // 8
IN_PROCESS = ("part: read", "part: decode", "ours", "webdataset", "loose files")
WHOLE = 1_800_000  # Places2


def run(
    images: int = 10_000,
    repetitions: int = 5,
    nginx: str | None = None,
    mosaic: str | None = None,
    whole: bool = True,
) -> dict[str, Any]:
    """Measure rows, ratios and the targets of the design.

    nginx: path of the program; None: searched on PATH.
    mosaic: a Python that has mosaicml-streaming; None: this one, if it has.
    whole: plan and read 1.8 million samples too; needs at least 5000 images.
    """
    torch.set_num_threads(1)
    mosaic = mosaic or (sys.executable if importlib.util.find_spec("streaming") else None)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        local = bench_images.write(folder / "bucket", images, SIDE, PER_SHARD)
        paths = loader_rows.loose_files(local, folder / "loose")
        rows = {
            "part: read": loader_rows.reading(local),
            "part: decode": loader_rows.decoding(local),
            "ours": loader_rows.ours(local, threads=0),
            "webdataset": loader_rows.webdataset(local, workers=0),
            "loose files": loader_rows.loose(paths, workers=0),
            "ours, helped": loader_rows.ours(local, threads=HELPERS),
            "webdataset, helped": loader_rows.webdataset(local, workers=HELPERS),
            "loose files, helped": loader_rows.loose(paths, workers=HELPERS),
        }
        if server := nginx or shutil.which("nginx"):
            stack.enter_context(storage(server, folder))
            # a rank of eight: blocks as large as those of a set of millions
            rows["eighth"] = loader_rows.ours(local, threads=0, lanes=EIGHTH)
            remote = open_manifest("s3://bucket")
            rows["eighth from storage"] = loader_rows.ours(remote, threads=0, lanes=EIGHTH)
        mosaic_times: list[tuple[float, float]] = []
        if mosaic:
            rows["mosaic"] = loader_rows.mosaic(mosaic, folder, mosaic_times)
        table = alternate(rows, repetitions, IN_PROCESS)
        if mosaic:
            _use_own_times(table, mosaic_times[1:])
        large = (
            {"planning": _planning(), "memory": _memory(local, folder / "whole")} if whole else {}
        )
        return _result(table, images, large)


def _use_own_times(table: list[dict[str, Any]], times: list[tuple[float, float]]) -> None:
    """Replace the times of the row `mosaic` by those that it measured itself."""
    row = next(row for row in table if row["name"] == "mosaic")
    row["cpu_seconds"], row["seconds"] = map(list, zip(*times))
    row["items_per_cpu_s"] = row["items"] / statistics.median(row["cpu_seconds"])


def _result(
    table: list[dict[str, Any]], images: int, large: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    cpu = {row["name"]: row["cpu_seconds"] for row in table}
    parts = zip(cpu["part: read"], cpu["part: decode"], cpu["ours"])
    ratios = {
        "ours / sum of parts": statistics.median((r + d) / whole for r, d, whole in parts),
        "ours / webdataset": faster(table, "ours", "webdataset"),
        "ours / loose files": faster(table, "ours", "loose files"),
        "helped: ours / webdataset": faster(table, "ours, helped", "webdataset, helped"),
        "helped: ours / loose files": faster(table, "ours, helped", "loose files, helped"),
    }
    goals = {
        "ours / sum of parts": 0.97,
        "ours / webdataset": 1.25,
        "helped: ours / webdataset": 1.0,
    }
    for name, mine, than, goal in (
        ("storage / local", "eighth from storage", "eighth", 0.92),
        ("ours / mosaic", "ours", "mosaic", 2.0),
    ):
        if {mine, than} <= set(cpu):
            ratios[name], goals[name] = faster(table, mine, than), goal
    targets = {name: target(ratios[name], goal) for name, goal in goals.items()}
    work = {
        "images": images,
        "side": SIDE,
        "batch": BATCH,
        "decoder": "simplejpeg, exact",
        "helpers": f"{HELPERS} threads (ours), {HELPERS} processes (others)",
        **large,
    }
    if large:
        seconds, mib = large["planning"]["seconds"], large["memory"]["mib"]
        targets["planning 1.8 million, seconds"] = target(seconds, 1.0, at_least=False)
        targets["reader of 1.8 million, MiB"] = target(mib, 300, at_least=False)
    return report("loader", work, table, ratios, targets)


# --- one process for 1.8 million samples ----------------------------------------------------------


def _planning() -> dict[str, Any]:
    """CPU seconds to plan an epoch of 1.8 million samples: all of it, and until it can begin."""
    count = WHOLE // PER_SHARD
    begun = time.process_time()
    epoch = Order([PER_SHARD] * count, [PER_SHARD * 13_300] * count, seed=0).epoch(0)
    first = time.process_time() - begun
    windows = 0
    for lane in range(epoch.order.lanes):
        spot, stop = epoch.lane(lane)
        while spot < stop:
            spot = epoch.window_at(lane, spot).stop
            windows += 1
    return {"seconds": time.process_time() - begun, "to_begin": first, "windows": windows}


_READER = """
import os, re, sys
from shards.decode import Crop
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream

def memory():
    with open("/proc/self/status") as file:
        sizes = dict(re.findall(r"(RssAnon|VmRSS):\\s+(\\d+)", file.read()))
    return int(sizes["RssAnon"]) / 1024, int(sizes["VmRSS"]) / 1024

before = most = memory()
stream = Stream(open_manifest(sys.argv[1]), "train", batch=64, seed=0, crop=Crop(256),
                masks=MaskPolicy("none"), threads=1)
for step in range(int(sys.argv[2])):
    next(stream)
    if step % 8 == 0:
        most = tuple(map(max, most, memory()))
print(*before, *most, flush=True)
os._exit(0)  # without the interpreter's teardown, which native thread pools race with
"""


def _memory(local: Manifest, folder: Path) -> dict[str, Any]:
    """Memory of one process that reads all lanes of 1.8 million samples, block by block.

    `mib` is what reading adds to the process after its imports; `resident` is all of it.
    """
    shards = [shard for shard in local.splits["train"].shards if shard.samples == PER_SHARD]
    links = []
    (folder / "train/index").mkdir(parents=True)
    for number in range(WHOLE // PER_SHARD):
        shard, name = shards[number % len(shards)], f"shard-{number:06d}"
        os.link(local.shard_url("train", shard), folder / f"train/{name}.tar")
        os.link(local.index_url("train", shard), folder / f"train/index/{name}.parquet")
        links.append(
            Shard(f"{name}.tar", shard.bytes, shard.samples, shard.sha256, shard.index_sha256)
        )
    split = Split(sum(shard.samples for shard in links), tuple(links))
    (folder / manifests.FILE).write_bytes(manifests.encode("whole", "images", "", {"train": split}))
    steps = 40_000 // BATCH  # until every lane has used up a block and is inside another
    reader = subprocess.run(
        [sys.executable, "-c", _READER, f"local://{folder}", str(steps)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, resident_before, most, resident = map(float, reader.stdout.split())
    return {
        "samples": split.samples,
        "mib": most - before,
        "private": most,
        "resident": resident,
        "resident_after_imports": resident_before,
    }
