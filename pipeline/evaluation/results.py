"""A table of per-image scores: its columns, its file, means and intervals, and printed form.

The file is Parquet, one row per pair. The facts that the scores depend on travel in its metadata,
so that the file alone says what was measured on which data.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.common import console
from pipeline.evaluation import intervals, metrics, pixels, sets
from shards import store
from shards.masks import NAMES as IRREGULAR

META = b"lacuna"
PAIR_COLUMNS = {
    "pair": pa.int64(),  # position in the list of pairs
    "name": pa.string(),
    "key": pa.int64(),
    "mask_key": pa.int64(),  # -1: a mask that is computed, not read from a set
    "bucket": pa.string(),
    "ratio": pa.float64(),  # share of hole pixels, measured
}


def schema() -> pa.Schema:
    """Return the columns of a table: the pair, then every metric of an image (null: none)."""
    return pa.schema(PAIR_COLUMNS | {m.name: pa.float64() for m in metrics.METRICS})


def merge(tables: Iterable[pa.Table], pairs: int) -> pa.Table:
    """Join the ranks' tables in the order of the pairs; each pair must occur once."""
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
    """Return table and facts; metrics that the table lacks are null.

    Raises ValueError for a file that does not exist or that `evaluate` did not write.
    """
    try:
        table = pq.read_table(io.BytesIO(store.read(url)))
    except FileNotFoundError:
        raise ValueError(f"evaluation {store.display(url)} does not exist") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{store.display(url)} is not a Parquet file ({error})") from error
    facts = (table.schema.metadata or {}).get(META)
    if facts is None or not {*PAIR_COLUMNS, "psnr"} <= set(table.column_names):
        raise ValueError(f"{store.display(url)} is not a table that `evaluate` wrote")
    for field in schema():
        if field.name not in table.column_names:  # written before the metric was added
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table, json.loads(facts)


def of_weights(run: str, *hashes: str) -> list[tuple[pa.Table, dict[str, Any]]]:
    """Return the evaluations in the folder of a run whose weights or archive have such a sha256."""
    return [(table, facts) for table, facts in of_run(run) if facts.get("sha256") in hashes]


def of_run(run: str) -> list[tuple[pa.Table, dict[str, Any]]]:
    """Return all evaluations in the folder of a run."""
    folder = store.join(run, "evaluation")
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    return [load(store.join(folder, name)) for name in names]


def summarize(table: pa.Table, facts: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return `{"buckets": {name: row}, "mean6": row or None, "all": row}` of a table of scores.

    A row is `{"n", "psnr", "ssim", "l1", "psnr_ci": [lo, hi], "ssim_ci", …, "l1_hole", "ssim_…"}`;
    `ssim` is the one of the protocol's convention. Intervals resample photographs, each with all
    its pairs, and are None for fewer than five. `mean6` is the unweighted mean over the six
    irregular buckets, as in MSA-Net's tables 2 to 5. Metrics of two sets come from the facts; they
    have no mean over buckets, but a value of all pairs.
    """
    convention, of_sets = facts.get("ssim", "gauss11_rgb"), facts.get("sets", {})
    names = list(dict.fromkeys(table["bucket"].to_pylist()))
    parts = {name: table.filter(pc.equal(table["bucket"], name)) for name in names}
    rows = {name: _row(part, convention) for name, part in parts.items()}
    mean6 = None
    if set(IRREGULAR) <= set(names):
        six = [rows[name] for name in IRREGULAR]
        numbers = [name for name, value in six[0].items() if isinstance(value, float)]
        irregular = table.filter(pc.is_in(table["bucket"], pa.array(IRREGULAR)))
        mean6 = _row(irregular, convention) | {"n": len(per_image(table))}
        mean6 |= {name: float(np.mean([row[name] for row in six])) for name in numbers}
    rows = {name: row | of_sets.get(name, {}) for name, row in rows.items()}
    every = _row(table, convention) | of_sets.get(sets.ALL, of_sets.get(names[0], {}))
    return {"buckets": rows, "mean6": mean6, "all": every}


def per_image(table: pa.Table) -> NDArray[np.float64]:
    """Return each photograph's mean PSNR over its pairs, in key order.

    Where the table has all six irregular buckets, over those alone.
    """
    if set(IRREGULAR) <= set(table["bucket"].to_pylist()):
        table = table.filter(pc.is_in(table["bucket"], pa.array(IRREGULAR)))
    return _photographs(table, "psnr")


def _photographs(part: pa.Table, metric: str) -> NDArray[np.float64]:
    """Return each photograph's mean over all its pairs; without those too small for the metric."""
    means = part.group_by("key").aggregate([(metric, "mean")]).sort_by("key")
    return np.asarray(means[f"{metric}_mean"].drop_null().to_numpy(), np.float64)


def _row(part: pa.Table, convention: str) -> dict[str, Any]:
    means = {m.name: pc.mean(part[m.name]).as_py() for m in metrics.METRICS}
    row: dict[str, Any] = {"n": part.num_rows}
    for key, metric in metrics.printed_metrics(convention, list(means)).items():
        if means.get(metric.name) is not None:
            row[key] = means[metric.name]
            row[f"{key}_ci"] = intervals.bootstrap(_photographs(part, metric.name))
    return row | {name: mean for name, mean in means.items() if mean is not None}


def warning(table: pa.Table, facts: Mapping[str, Any]) -> str:
    """Return why the scores of predictions are probably meaningless; empty if they are not."""
    equal = sum(psnr >= pixels.PSNR_CAP for psnr in table["psnr"].to_pylist())
    if "predictions" not in facts or not equal:
        return ""
    return (
        f"warning: {equal} of {len(table)} predictions are the original images: predictions= "
        "takes a folder of filled images, not the one that export= wrote"
    )


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the printed table of one evaluation, the heading first."""
    printed = metrics.printed_metrics(chosen=result.get("metrics", ()))
    rows = [["hole ratio", "n"]]
    for key, metric in printed.items():
        rows[0] += [metric.heading, "95 %"] if key == "psnr" else [metric.heading]
    means = {"mean of six": result["mean6"]} if result.get("mean6") else {}
    if any(metrics.record(key).of_sets for key in printed):
        means["all pairs"] = result["all"]
    for name, row in {**result["buckets"], **means}.items():
        cells = [name, str(row["n"])]
        for key, metric in printed.items():
            cells.append(f"{row[key]:.{metric.digits}f}" if key in row else "-")
            if key == "psnr":
                interval = row["psnr_ci"]
                cells.append("[{:.3f}, {:.3f}]".format(*interval) if interval else "-")
        rows.append(cells)
    return rows


def as_text(result: Mapping[str, Any]) -> str:
    """Return the printed table of one evaluation, and a line on each column that needs one."""
    return "\n".join([*console.table(table_rows(result), "<>"), *notes(result)])


def notes(facts: Mapping[str, Any]) -> list[str]:
    """Say of each metric that needs it why its numbers are missing or biased."""
    found, known = facts.get("notes", {}), (*metrics.METRICS, *metrics.SET_METRICS)
    return [f"{m.title}: {found[m.name]}" for m in known if m.name in found]


def default_url(facts: dict[str, Any]) -> str:
    """Return where the table goes without `out=`: the run's folder, or runs/evaluation."""
    end = f"{facts['pairs_digest'][:8]}-{facts['ssim']}.parquet"
    if "run" in facts:
        stem = f"{facts['protocol']}-{facts['weights']}-{facts['images_seen']:012d}"
        return store.join(facts["run"], "evaluation", f"{stem}-{end}")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", facts["name"]).strip("_")
    return f"runs/evaluation/{facts['protocol']}-{name}-{end}"
