"""The comparison as one self-contained HTML file: its tables, and images to compare."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.comparison.collect import Evaluation
from pipeline.comparison.table import Table, describe, shown
from pipeline.config.schema import CompareConfig
from pipeline.evaluation import pair_images
from pipeline.inference import images

TEMPLATES = Path(__file__).with_name("templates")


def render(table: Table, evaluations: Iterable[tuple[str, Evaluation]]) -> str:
    """Return the page. evaluations: (label, evaluation) of each row of ours."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    samples = _samples(evaluations)
    labels = dict.fromkeys(label for sample in samples for label in sample["results"])
    return environment.get_template("report.html.j2").render(
        table=table, describe=describe, shown=shown, samples=samples, labels=list(labels)
    )


def log(config: CompareConfig, digest: str, texts: Mapping[str, str]) -> None:
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
        for kind, text in texts.items():
            tracker.artifact(f"report/compare.{kind}", text.encode())


def _samples(evaluations: Iterable[tuple[str, Evaluation]]) -> list[dict[str, Any]]:
    """Return the sample pairs: original and mask, and (image, PSNR) of each row that has the pair.

    Pairs of one name that differ in their pixels are separate samples.
    """
    pairs: dict[Any, dict[str, Any]] = {}
    for label, evaluation in evaluations:
        psnr = dict(zip(*(evaluation.table[name].to_pylist() for name in ("name", "psnr"))))
        for name, image, mask, result in pair_images.load(evaluation.url):
            key = name, image.tobytes(), mask.tobytes()
            if key not in pairs:
                hole = np.where(mask[..., None] == 1, 255, image // 3).astype(np.uint8)
                text = f"{100 * mask.mean():.0f} % hole"
                inputs = {"original": _data_url(image), "mask": _data_url(hole)}
                pairs[key] = {"name": name, "text": text, **inputs, "results": {}}
            pairs[key]["results"][label] = _data_url(result), f"{psnr[name]:.2f} dB"
    return list(pairs.values())


def _data_url(pixels: NDArray[np.uint8]) -> str:
    data = images.encode(images.ImageFile(pixels))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
