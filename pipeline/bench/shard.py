"""`bench shard`: our writer beside webdataset's, a copy of the files, and its own parts.

All take the same loose 256×256 JPEG files to a local disk. Ours also decodes each once, hashes
and indexes it and publishes the set atomically; webdataset's ShardWriter and the copy do not.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from skimage import data

from pipeline.bench.timing import alternate, faster, report, target, whole
from shards import store
from shards.hygiene import Policy, examine
from shards.pack import Sample, pack
from shards.plan import Row, make_plan
from shards.sources import source
from shards.sources.files import Loader, read_file
from shards.writer import finalise, write

SIDE = 256
SHARD_MB = 64


def run(images: int = 5_000, repetitions: int = 5) -> dict[str, Any]:
    """The whole benchmark: rows, ratios and the target of the design."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _pictures(folder / "loose", images)
        table = alternate(
            {
                "part: list and plan": whole(_planning(folder / "loose")),
                "part: read": whole(_reading(folder / "loose", rows)),
                "part: check": whole(_checking(folder / "loose", rows)),
                "part: pack": whole(_packing(folder / "loose", rows)),
                "part: publish": whole(_publishing(folder / "loose", rows, folder / "published")),
                "ours": whole(_ours(folder / "loose", folder / "ours")),
                "webdataset": whole(_webdataset(folder / "loose", rows, folder / "webdataset")),
                "loose files": whole(_copying(folder / "loose", rows, folder / "copy")),
            },
            repetitions,
        )
    return _result(table, images)


def _result(table: list[dict[str, Any]], images: int) -> dict[str, Any]:
    rows = {row["name"]: row for row in table}
    parts = [row["cpu_seconds"] for name, row in rows.items() if name.startswith("part: ")]
    ours = rows["ours"]["cpu_seconds"]
    shares = sorted(sum(turn) / whole for *turn, whole in zip(*parts, ours))
    milliseconds = 1e3 / rows["ours"]["items_per_cpu_s"]
    ratios = {
        "sum of parts / ours": shares[len(shares) // 2],
        "ours / webdataset, which checks and indexes nothing": faster(table, "ours", "webdataset"),
        "ours / loose files copied": faster(table, "ours", "loose files"),
    }
    targets = {"ms of CPU an image, with the check": target(milliseconds, 0.6, at_least=False)}
    work = {
        "images": images,
        "side": SIDE,
        "shard_mb": SHARD_MB,
        "microseconds": {name: round(1e6 / r["items_per_cpu_s"], 1) for name, r in rows.items()},
    }
    return report("shard", work, table, ratios, targets)


def _pictures(folder: Path, count: int) -> list[Row]:
    """Crops of scikit-image's photographs, about 13 kB each, as loose files."""
    folder.mkdir()
    random = np.random.default_rng(0)
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    rows = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        top, left = (random.integers(0, n - SIDE + 1) for n in whole.shape[:2])
        crop = np.ascontiguousarray(whole[top : top + SIDE, left : left + SIDE])
        encoded = simplejpeg.encode_jpeg(crop, quality=82, colorsubsampling="420")
        (folder / f"{number:06d}.jpg").write_bytes(encoded)
        rows.append(Row(number, f"{number:06d}.jpg".encode(), len(encoded), -1, "", 0))
    return rows


# --- the rows -------------------------------------------------------------------------------------


def _plan(loose: Path):
    return make_plan(
        "bench",
        "images",
        source("folder").entries(loose, 0.0),
        seed=0,
        shard_bytes=SHARD_MB * 2**20,
        options=Policy().options(),
    )


def _ours(loose: Path, out: Path) -> Callable[[], int]:
    def work() -> int:
        shutil.rmtree(out, ignore_errors=True)
        planned = _plan(loose)
        for _ in write(str(out), planned, Loader(loose, Policy())):
            pass
        return finalise(str(out), planned).manifest.splits["train"].samples

    return work


def _planning(loose: Path) -> Callable[[], int]:
    return lambda: _plan(loose).rows.num_rows


def _reading(loose: Path, rows: list[Row]) -> Callable[[], int]:
    def work() -> int:
        for row in rows:
            read_file(loose, row)
        return len(rows)

    return work


def _checking(loose: Path, rows: list[Row]) -> Callable[[], int]:
    held, policy = [read_file(loose, row) for row in rows], Policy()

    def work() -> int:
        return sum(isinstance(examine("x", encoded, policy), Sample) for encoded in held)

    return work


def _packing(loose: Path, rows: list[Row]) -> Callable[[], int]:
    policy = Policy()
    samples = [examine(row.src.decode(), read_file(loose, row), policy) for row in rows]

    def work() -> int:
        return pack("images", 0, "", enumerate(samples)).samples

    return work


def _publishing(loose: Path, rows: list[Row], out: Path) -> Callable[[], int]:
    held, policy = [], Policy()
    for start in range(0, len(rows), 5000):
        part = rows[start : start + 5000]
        samples = [examine(row.src.decode(), read_file(loose, row), policy) for row in part]
        held.append(pack("images", 0, "", enumerate(samples)).tar)

    def work() -> int:
        for number, tar in enumerate(held):
            store.write(out / f"{number}.tar", tar)
        return len(rows)

    return work


def _webdataset(loose: Path, rows: list[Row], out: Path) -> Callable[[], int]:
    import webdataset

    def work() -> int:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        pattern = str(out / "shard-%06d.tar")
        with webdataset.ShardWriter(pattern, maxsize=SHARD_MB * 2**20, verbose=0) as writer:
            for row in rows:
                writer.write({"__key__": f"{row.sample_id:09d}", "jpg": read_file(loose, row)})
        return len(rows)

    return work


def _copying(loose: Path, rows: list[Row], out: Path) -> Callable[[], int]:
    def work() -> int:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for row in rows:
            name = row.src.decode()
            shutil.copyfile(loose / name, out / name)
        return len(rows)

    return work
