"""`bench shard`: our writer vs. webdataset's, a copy of the files, and its own parts.

All write the same loose 256×256 JPEG files to a local disk and, where nginx is installed, to nginx
spoken to as S3. Ours also decodes each file once, hashes and indexes it and publishes the set
atomically; webdataset's ShardWriter and the copy do not. nginx cannot list, so there ours ends
before `finalize`, and webdataset's shards are uploaded as each is done.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.images import SIDE, jpegs
from pipeline.bench.storage import storage
from pipeline.bench.timing import alternate, faster, report, target, whole
from shards import store
from shards.hygiene import Policy, examine
from shards.pack import PackedSample, pack
from shards.plan import Row, make_plan
from shards.sources import source
from shards.sources.files import Loader, read_file
from shards.writer import finalize, write

SHARD_MB = 64


def run(images: int = 5_000, repetitions: int = 5) -> dict[str, Any]:
    """Measure rows, ratios and the target of the design."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        loose = folder / "loose"
        rows = _write_files(loose, images)
        work = {
            "part: list and plan": _planning(loose),
            "part: read": _reading(loose, rows),
            "part: check": _checking(loose, rows),
            "part: pack": _packing(loose, rows),
            "part: publish": _publishing(loose, rows, str(folder / "published")),
            "ours": _ours(loose, folder / "ours"),
            "webdataset": _webdataset(loose, rows, folder / "webdataset"),
            "loose files": _copying(loose, rows, folder / "copy"),
        }
        if server := shutil.which("nginx"):
            (folder / "bucket").mkdir()
            stack.enter_context(storage(server, folder))
            work |= {
                "publish to storage": _publishing(loose, rows, "s3://bucket/published"),
                "ours to storage": _ours_to_storage(loose, "s3://bucket/ours"),
                "webdataset to storage": _webdataset(
                    loose, rows, folder / "webdataset", "s3://bucket/webdataset"
                ),
                "loose files to storage": _sending(loose, rows, "s3://bucket/copy"),
            }
        table = alternate({name: whole(function) for name, function in work.items()}, repetitions)
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
    if "ours to storage" in rows:
        ratios |= {
            "ours to storage / ours": faster(table, "ours to storage", "ours"),
            "to storage: ours / webdataset": faster(
                table, "ours to storage", "webdataset to storage"
            ),
            "to storage: ours / loose files": faster(
                table, "ours to storage", "loose files to storage"
            ),
        }
    targets = {"ms of CPU an image, with the check": target(milliseconds, 0.6, at_least=False)}
    work = {
        "images": images,
        "side": SIDE,
        "shard_mb": SHARD_MB,
        "microseconds": {name: round(1e6 / r["items_per_cpu_s"], 1) for name, r in rows.items()},
    }
    return report("shard", work, table, ratios, targets)


def _write_files(folder: Path, count: int) -> list[Row]:
    """Write the JPEG crops as files; returns the rows of a plan for them."""
    folder.mkdir()
    rows = []
    for number, encoded in enumerate(jpegs(count)):
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
        return finalize(str(out), planned).manifest.splits["train"].samples

    return work


def _ours_to_storage(loose: Path, out: str) -> Callable[[], int]:
    def work() -> int:
        planned = _plan(loose)
        for _ in write(out, planned, Loader(loose, Policy())):
            pass
        return planned.rows.num_rows

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
    files, policy = [read_file(loose, row) for row in rows], Policy()

    def work() -> int:
        return sum(isinstance(examine("x", encoded, policy), PackedSample) for encoded in files)

    return work


def _packing(loose: Path, rows: list[Row]) -> Callable[[], int]:
    policy = Policy()
    samples = [examine(row.src.decode(), read_file(loose, row), policy) for row in rows]

    def work() -> int:
        return pack("images", 0, "", enumerate(samples)).samples

    return work


def _publishing(loose: Path, rows: list[Row], out: str) -> Callable[[], int]:
    tars, policy = [], Policy()
    for start in range(0, len(rows), 5000):
        part = rows[start : start + 5000]
        samples = [examine(row.src.decode(), read_file(loose, row), policy) for row in part]
        tars.append(pack("images", 0, "", enumerate(samples)).tar)

    def work() -> int:
        for number, tar in enumerate(tars):
            store.write(store.join(out, f"{number}.tar"), tar)
        return len(rows)

    return work


def _webdataset(
    loose: Path, rows: list[Row], out: Path, send_to: str | None = None
) -> Callable[[], int]:
    import webdataset

    def send(path: str) -> None:
        if send_to is not None:
            store.upload(store.join(send_to, Path(path).name), path)

    def work() -> int:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        pattern = str(out / "shard-%06d.tar")
        with webdataset.ShardWriter(
            pattern, maxsize=SHARD_MB * 2**20, verbose=0, post=send
        ) as writer:
            for row in rows:
                writer.write({"__key__": f"{row.sample_id:09d}", "jpg": read_file(loose, row)})
        return len(rows)

    return work


def _sending(loose: Path, rows: list[Row], out: str) -> Callable[[], int]:
    def work() -> int:
        for row in rows:
            name = row.src.decode()
            store.upload(store.join(out, name), loose / name)
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
