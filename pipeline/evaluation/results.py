"""A scored table: its columns, its file, its means and intervals, and how it prints.

The file is Parquet, one row a pair; the facts that the numbers depend on (`facts`) travel in its
metadata, so that a file alone says what was measured on what.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.evaluation import metrics
from shards import store
from shards.masks import NAMES as IRREGULAR

META = b"lacuna"
SCHEMA = pa.schema(
    [
        ("pair", pa.int64()),  # position in the list of pairs
        ("name", pa.string()),
        ("key", pa.int64()),
        ("mask_key", pa.int64()),  # -1: a mask that needs no set
        ("bucket", pa.string()),
        ("ratio", pa.float64()),  # share of hole pixels, measured
        *((name, pa.float64()) for name in metrics.METRICS),  # null: the window does not fit
    ]
)


def merge(tables: Iterable[pa.Table], pairs: int) -> pa.Table:
    """The ranks' tables as one, in the order of the pairs; each pair must be there once."""
    table = pa.concat_tables(tables).sort_by("pair").combine_chunks()
    assert table["pair"].to_pylist() == list(range(pairs)), "a pair was dropped or scored twice"
    return table


def save(url: str, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Publish the table with its facts at `url`, atomically; same input, same bytes."""
    text = json.dumps(facts, sort_keys=True).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({META: text}), buffer, compression="zstd")
    store.write(url, buffer.getvalue())


def load(url: str) -> tuple[pa.Table, dict[str, Any]]:
    """Table and facts. ValueError when the file is none of ours."""
    try:
        table = pq.read_table(io.BytesIO(store.read(url)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{store.display(url)} is no Parquet file ({error})") from error
    found = (table.schema.metadata or {}).get(META)
    if found is None or not set(SCHEMA.names) <= set(table.column_names):
        raise ValueError(f"{store.display(url)} is no table that `evaluate` wrote")
    return table, json.loads(found)


def of_weights(run: str, *hashes: str) -> list[tuple[pa.Table, dict[str, Any]]]:
    """The evaluations in a run's folder of weights, or of an archive, with one of these sha256."""
    folder = store.join(run, "evaluation")
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    every = [load(store.join(folder, name)) for name in names]
    return [(table, facts) for table, facts in every if facts.get("sha256") in hashes]


def summarise(table: pa.Table, convention: str = "gauss11_rgb") -> dict[str, Any]:
    """`{"buckets": {name: row}, "mean6": row or None}` of a scored table.

    A row is `{"n", "psnr", "ssim", "l1", "psnr_ci": [lo, hi], "l1_hole", "ssim_…"}`; `ssim` is the
    one of `convention`. `mean6` is the unweighted mean over the six irregular buckets, as in
    MSA-Net's tables 2 to 5; its interval resamples pictures, each with its six masks.
    """
    names = list(dict.fromkeys(table["bucket"].to_pylist()))
    parts = {name: table.filter(pc.equal(table["bucket"], name)) for name in names}
    buckets = {name: _row(part, convention) for name, part in parts.items()}
    if not set(IRREGULAR) <= set(names):
        return {"buckets": buckets, "mean6": None}
    six = [buckets[name] for name in IRREGULAR]
    numbers = [name for name, value in six[0].items() if isinstance(value, float)]
    psnr = per_picture(table, "psnr")
    mean6: dict[str, Any] = {name: float(np.mean([row[name] for row in six])) for name in numbers}
    mean6 |= {"n": len(psnr), "psnr_ci": metrics.bootstrap(psnr)}
    return {"buckets": buckets, "mean6": mean6}


def per_picture(table: pa.Table, metric: str) -> NDArray[np.float64]:
    """Each picture's mean of `metric` over the six irregular buckets, in key order."""
    irregular = table.filter(pc.is_in(table["bucket"], pa.array(IRREGULAR)))
    means = irregular.group_by("key").aggregate([(metric, "mean")]).sort_by("key")
    found: NDArray[np.float64] = means[f"{metric}_mean"].to_numpy()
    return found


def _row(part: pa.Table, convention: str) -> dict[str, Any]:
    means = {name: pc.mean(part[name]).as_py() for name in metrics.METRICS}
    row = {"n": part.num_rows, "psnr": means["psnr"], "ssim": means[f"ssim_{convention}"]}
    row |= {"l1": means["l1"], "psnr_ci": metrics.bootstrap(part["psnr"].to_numpy())}
    rest = {name: value for name, value in means.items() if name not in row}
    return {name: value for name, value in {**row, **rest}.items() if value is not None}


def as_text(result: Mapping[str, Any]) -> str:
    """The printed table of one evaluation."""
    lines = [f"{'hole ratio':<12}{'n':>7}{'PSNR dB':>10}{'95 %':>18}{'SSIM':>9}{'L1 %':>8}"]
    rows = dict(result["buckets"])
    if result.get("mean6"):
        rows["mean of six"] = result["mean6"]
    for name, row in rows.items():
        ssim = f"{row['ssim']:.4f}" if "ssim" in row else "-"
        low, high = row["psnr_ci"]
        lines.append(
            f"{name:<12}{row['n']:>7}{row['psnr']:>10.3f}"
            f"{f'[{low:.3f}, {high:.3f}]':>18}{ssim:>9}{row['l1']:>8.3f}"
        )
    return "\n".join(lines)


def place_of(facts: dict[str, Any]) -> str:
    """Where the table goes: into the run's folder, or that of evaluations of other things."""
    pairs = facts["pairs_digest"][:8]
    if "run" in facts:
        stem = f"{facts['protocol']}-{facts['weights']}-{facts['images_seen']:012d}-{pairs}"
        return store.join(facts["run"], "evaluation", f"{stem}.parquet")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", facts["name"]).strip("_")
    return f"runs/evaluation/{facts['protocol']}-{name}-{pairs}.parquet"
