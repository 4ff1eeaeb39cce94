"""The comparison as one HTML file that needs nothing else: table, curves, pictures to flip."""

import base64
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.comparison.collect import Evaluation
from pipeline.comparison.table import TITLES, Table, letter, shown
from pipeline.config.schema import CompareConfig
from pipeline.evaluation import pair_images
from pipeline.inference import images
from pipeline.tracking import errors
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.sender import say
from shards import store

TEMPLATES = Path(__file__).with_name("templates")
COLOURS = ("#0b6e4f", "#c8553d", "#2b59c3", "#8d6a9f", "#b08900", "#3f7d8c", "#7a7a7a", "#d81e5b")
CURVES = {"val/psnr": "PSNR on validation pairs, dB", "val/ssim": "SSIM on validation pairs"}
PLOT = (60.0, 10.0, 650.0, 210.0)  # left, top, width, height


def render(sheet: Table, evaluations: Sequence[tuple[str, Evaluation]], root: str) -> str:
    """The page. `evaluations` are (column's name, evaluation), one for each row of ours."""
    samples = {name: {s.name: s for s in pair_images.load(e.url)} for name, e in evaluations}
    scores = {name: _scores(e) for name, e in evaluations}
    samples = {name: found for name, found in samples.items() if found}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        sheet=sheet,
        subtitle=f"{len(evaluations)} results of ours; each number says what it compares with",
        grids=list(_grids(sheet)),
        statuses=sheet.statuses(),
        told=list(dict.fromkeys((r.label, r.provenance) for r in sheet.rows if r.provenance)),
        missing=[(r.label, r.missing) for r in sheet.rows if r.missing],
        curves=[c for c in (_curve(name, evaluations, root) for name in CURVES) if c],
        picture_columns=["original", "mask", *samples],
        samples=_samples(samples, scores),
    )


def log(config: CompareConfig, word: str, urls: Iterable[str]) -> None:
    """The report as an MLflow run of its own, under `report/`; one run for each `out=`."""
    from pipeline.common.environment import user
    from pipeline.tracking.tracker import Tracker

    experiment = config.tracking.experiment or f"{user()}/compare"
    tracker = Tracker(
        str(config.out), root=config.root, experiment=experiment, run_name=f"compare-{word}"
    )
    told = {"table": config.table, "protocol": config.protocol, "runs": config.runs}
    with tracker, tempfile.TemporaryDirectory() as scratch:
        tracker.start(told, {"kind": "comparison"})
        for url in urls:
            copy = Path(scratch, store.name(url))
            copy.write_bytes(store.read(url))
            tracker.artifact(copy, "report")


def _grids(sheet: Table) -> Iterable[tuple[str, str, list[dict[str, Any]]]]:
    marks = {status: letter(i) for i, status in enumerate(sheet.statuses())}
    for metric in sheet.metrics:
        lines: list[dict[str, Any]] = []
        block = ""
        for row in sheet.rows_with(metric):
            if row.block != block:
                block = row.block
                lines.append({"block": block})
            cells = []
            for column in sheet.columns:
                cell = row.cells.get((column, metric))
                if cell is None or cell.value is None:
                    cells.append({"text": "-", "mark": "", "best": False, "title": ""})
                    continue
                best = sheet.is_best(row, column, metric)
                between = f"95 %: {cell.low:.3f} to {cell.high:.3f}; " if cell.low else ""
                mark, title = marks.get(cell.status, ""), f"{between}{cell.status}"
                text = shown(cell, metric)
                cells.append({"text": text, "mark": mark, "best": best, "title": title})
            kept = {k: getattr(row, k) for k in ("label", "kind", "against", "provenance")}
            lines.append({**kept, "block": "", "cells": cells})
        yield metric, TITLES[metric], lines


def _scores(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    columns = ("name", "bucket", "ratio", "psnr")
    rows = zip(*(evaluation.table[c].to_pylist() for c in columns))
    return {row[0]: dict(zip(columns, row)) for row in rows}


def _samples(
    samples: dict[str, dict[str, pair_images.EvaluatedPair]],
    scores: dict[str, dict[str, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Rows of pictures: original, mask, each result; a result of another picture is left out."""
    firsts: dict[str, pair_images.EvaluatedPair] = {}
    for held in samples.values():
        firsts = {**held, **firsts}
    rows = []
    for name, first in firsts.items():
        score = next(s[name] for s in scores.values() if name in s)
        mask = np.where(first.mask[..., None] == 1, 255, first.image // 3).astype(np.uint8)
        row: list[dict[str, str] | None] = [_picture(first.image, ""), _picture(mask, "")]
        for column, found in samples.items():
            sample = found.get(name)
            if sample is None or not _same_pair(sample, first):
                row.append(None)
                continue
            row.append(_picture(sample.result, f"{scores[column][name]['psnr']:.2f} dB"))
        told = f"{score['bucket']}, {100 * score['ratio']:.0f} % hole"
        rows.append({"name": name, "told": told, "pictures": row})
    return rows


def _same_pair(one: pair_images.EvaluatedPair, other: pair_images.EvaluatedPair) -> bool:
    return np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)


def _picture(pixels: NDArray[np.uint8], told: str) -> dict[str, str]:
    data = base64.b64encode(images.encode(images.ImageFile(pixels))).decode()
    return {"src": f"data:image/png;base64,{data}", "told": told}


def _curve(
    metric: str, evaluations: Sequence[tuple[str, Evaluation]], root: str
) -> dict[str, Any] | None:
    """One chart of a metric's history, as MLflow has it; None where no run has one."""
    series = {}
    for name, evaluation in evaluations:
        if evaluation.mlflow_run is not None:
            points = _history(evaluation.mlflow_run, metric, root)
            if len(points) > 1:
                series[name] = points
    if not series:
        return None
    every = np.array([p for points in series.values() for p in points])
    (x0, y0), (x1, y1) = every.min(0), every.max(0)
    left, top, width, height = PLOT

    def x(value: float) -> float:
        return float(left + width * (value - x0) / max(x1 - x0, 1e-9))

    def y(value: float) -> float:
        return float(top + height * (1 - (value - y0) / max(y1 - y0, 1e-9)))

    return {
        "title": CURVES[metric],
        "ticks_y": [{"at": round(y(v), 1), "text": f"{v:.4g}"} for v in np.linspace(y0, y1, 5)],
        "ticks_x": [{"at": round(x(v), 1), "text": f"{v:.3g}"} for v in np.linspace(x0, x1, 5)],
        "lines": [
            {
                "label": name,
                "colour": COLOURS[i % len(COLOURS)],
                "points": " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points),
            }
            for i, (name, points) in enumerate(series.items())
        ],
    }


def _history(run_id: str, metric: str, root: str) -> list[tuple[float, float]]:
    uri = tracking_uri(root)
    try:
        client = connect(uri, make=False)
        with errors.explained(uri):
            found = client.get_metric_history(run_id, metric)
    except errors.ServerError as error:
        say(f"{error}; the report has no curves")
        return []
    return sorted({(float(m.step), float(m.value)) for m in found})
