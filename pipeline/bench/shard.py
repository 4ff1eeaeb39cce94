"""`bench shard`: our writer vs. webdataset's ShardWriter, and vs. sending the files one by one.

All write the same loose 256×256 JPEG files to a local disk and, where nginx is installed, to nginx
spoken to as S3. Ours also decodes each file once, hashes and indexes it and publishes the set
atomically. nginx cannot list, so there ours ends before `finalize`.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import webdataset

from pipeline.bench.images import SIDE, loose_files
from pipeline.bench.storage import storage
from pipeline.bench.timing import alternate, compare, report, target
from shards import store
from shards.hygiene import Policy
from shards.plan import make_plan
from shards.sources import source
from shards.sources.files import Loader
from shards.writer import finalize, write

SHARD_MB = 64


def run(images: int = 5_000, repetitions: int = 5) -> dict[str, Any]:
    """Measure rows, ratios and the target of the design."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        paths = loose_files(folder / "loose", images)
        rows = {
            "ours": lambda: _ours(folder / "loose", str(folder / "ours")),
            "webdataset": lambda: _webdataset(paths, folder / "webdataset"),
        }
        if server := shutil.which("nginx"):
            (folder / "bucket").mkdir()
            stack.enter_context(storage(server, folder))
            rows["ours to storage"] = lambda: _ours(folder / "loose", "s3://bucket/ours")
            rows["loose files to storage"] = lambda: _send(paths, "s3://bucket/copy")
        table = alternate(rows, repetitions)
    ratios, _ = compare(
        table,
        {
            "ours / webdataset, which checks and indexes nothing": ("ours", "webdataset", None),
            "ours to storage / ours": ("ours to storage", "ours", None),
            "to storage: ours / loose files": ("ours to storage", "loose files to storage", None),
        },
    )
    milliseconds = 1e3 / table[0]["items_per_cpu_s"]
    targets = {"ms of CPU an image, with the check": target(milliseconds, 0.6, at_least=False)}
    work = {"images": images, "side": SIDE, "shard_mb": SHARD_MB}
    return report("shard", work, table, ratios, targets)


def _ours(loose: Path, out: str) -> int:
    if store.is_local(out):
        shutil.rmtree(out, ignore_errors=True)
    planned = make_plan(
        "bench",
        "images",
        source("folder").entries(loose, 0.0),
        seed=0,
        shard_bytes=SHARD_MB * 2**20,
        options=Policy().options(),
    )
    for _ in write(out, planned, Loader(loose, Policy())):
        pass
    if store.is_local(out):
        return finalize(out, planned).manifest.splits["train"].samples
    return planned.rows.num_rows


def _webdataset(paths: list[Path], out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    pattern = str(out / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_MB * 2**20, verbose=0) as writer:
        for path in paths:
            writer.write({"__key__": path.stem, "jpg": path.read_bytes()})
    return len(paths)


def _send(paths: list[Path], out: str) -> int:
    for path in paths:
        store.upload(store.join(out, path.name), path)
    return len(paths)
