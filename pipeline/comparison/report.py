"""The comparison as one self-contained HTML file: tables, curves and images to compare."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.comparison.collect import Evaluation
from pipeline.comparison.table import Table, describe, shown
from pipeline.config.schema import CompareConfig
from pipeline.evaluation import pair_images
from pipeline.inference import images
from pipeline.tracking import errors
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.sender import say
from shards import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
CURVES = {"val/psnr": "PSNR on validation pairs, dB", "val/ssim": "SSIM on validation pairs"}


def render(table: Table, evaluations: Sequence[tuple[str, Evaluation]], root: str) -> str:
    """Return the page. evaluations: (label, evaluation) of each row of ours."""
    samples = {name: {s.name: s for s in pair_images.load(e.url)} for name, e in evaluations}
    samples = {name: kept for name, kept in samples.items() if kept}
    scores = {name: _scores(e) for name, e in evaluations}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        table=table,
        subtitle=f"{len(evaluations)} results of ours; footnotes say how far numbers compare",
        grids=list(_grids(table)),
        curves=[c for c in (_curve(name, evaluations, root) for name in CURVES) if c],
        image_columns=["original", "mask", *samples],
        samples=_sample_rows(samples, scores),
    )


def log(config: CompareConfig, digest: str, urls: Iterable[str]) -> None:
    """Log the report under `report/` to an MLflow run of its own, one for each `out=`."""
    from pipeline.common.environment import user
    from pipeline.tracking.tracker import Tracker

    experiment = config.tracking.experiment or f"{user()}/compare"
    tracker = Tracker(
        str(config.out), root=config.root, experiment=experiment, run_name=f"compare-{digest}"
    )
    params = {"table": config.table, "protocol": config.protocol, "runs": config.runs}
    with tracker:
        tracker.start(params, {"kind": "comparison"})
        for url in urls:
            tracker.artifact(f"report/{store.name(url)}", store.read(url))


def _grids(table: Table) -> Iterable[tuple[str, str, list[dict[str, Any]]]]:
    """Yield the rows of each metric with its heading, as the template prints them."""
    marks = table.marks()
    for metric in table.metrics:
        lines: list[dict[str, Any]] = []
        block = ""
        for row in table.rows_with(metric):
            if row.block != block:
                block = row.block
                lines.append({"block": block})
            cells = []
            for column in table.columns:
                cell = row.cells.get((column, metric))
                if cell is None or cell.value is None:
                    cells.append({"text": "-", "mark": "", "best": False, "title": ""})
                    continue
                best = table.is_best(row, column, metric)
                between = f"95 %: {cell.low:.3f} to {cell.high:.3f}; " if cell.low else ""
                mark, title = marks.get(cell.status, ""), f"{between}{cell.status}"
                text = shown(cell, metric)
                cells.append({"text": text, "mark": mark, "best": best, "title": title})
            attributes = {k: getattr(row, k) for k in ("label", "kind", "against", "provenance")}
            lines.append({**attributes, "block": "", "cells": cells})
        yield metric, describe(metric)[0], lines


def _scores(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    rows = evaluation.table.select(["name", "bucket", "ratio", "psnr"]).to_pylist()
    return {row["name"]: row for row in rows}


def _sample_rows(
    samples: dict[str, dict[str, pair_images.EvaluatedPair]],
    scores: dict[str, dict[str, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Return rows of images: original, mask and every result of the same pair."""
    firsts: dict[str, pair_images.EvaluatedPair] = {}
    for kept in samples.values():
        firsts = {**kept, **firsts}
    rows = []
    for name, first in firsts.items():
        score = next(s[name] for s in scores.values() if name in s)
        mask = np.where(first.mask[..., None] == 1, 255, first.image // 3).astype(np.uint8)
        row: list[dict[str, str] | None] = [_image(first.image, ""), _image(mask, "")]
        for column, kept in samples.items():
            sample = kept.get(name)
            if sample is None or not _same_pair(sample, first):
                row.append(None)
                continue
            row.append(_image(sample.result, f"{scores[column][name]['psnr']:.2f} dB"))
        text = f"{score['bucket']}, {100 * score['ratio']:.0f} % hole"
        rows.append({"name": name, "text": text, "images": row})
    return rows


def _same_pair(one: pair_images.EvaluatedPair, other: pair_images.EvaluatedPair) -> bool:
    return np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)


def _image(pixels: NDArray[np.uint8], text: str) -> dict[str, str]:
    return {"src": _data_url(images.encode(images.ImageFile(pixels)), "png"), "text": text}


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _curve(
    metric: str, evaluations: Sequence[tuple[str, Evaluation]], root: str
) -> dict[str, str] | None:
    """Return a chart of the metric's history in MLflow as an image; None if no run has one."""
    histories = {
        name: _history(evaluation.mlflow_run, metric, root)
        for name, evaluation in evaluations
        if evaluation.mlflow_run is not None
    }
    histories = {name: points for name, points in histories.items() if len(points) > 1}
    if not histories:
        return None
    buffer = io.BytesIO()
    chart(CURVES[metric], histories).savefig(buffer, format="svg", metadata={"Date": None})
    return {"title": CURVES[metric], "src": _data_url(buffer.getvalue(), "svg+xml")}


def chart(title: str, histories: dict[str, list[tuple[float, float]]]) -> Figure:
    """Draw a line per run over the images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel="images seen", ylabel=title)
    axis.grid(alpha=0.3)
    lines = [axis.plot(*zip(*points))[0] for points in histories.values()]
    legend = axis.legend(lines, list(histories), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names may hold a $
    return figure


def _history(run_id: str, metric: str, root: str) -> list[tuple[float, float]]:
    uri = tracking_uri(root)
    try:
        client = connect(uri, make=False)
        with errors.explained(uri):
            history = client.get_metric_history(run_id, metric)
    except errors.ServerError as error:
        say(f"{error}; the report has no curves")
        return []
    return sorted({(float(m.step), float(m.value)) for m in history})
