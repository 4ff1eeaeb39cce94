"""Rows of a comparison: what a paper prints, with its status, and what was measured here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.comparison import papers
from pipeline.comparison.collect import Evaluation
from pipeline.comparison.table import SAME_PAIRS, Cell, Row
from pipeline.config.compose import compose
from pipeline.evaluation import intervals, receipts, results, sets
from shards.masks import NAMES as IRREGULAR

MEAN = "mean6"
ALL = sets.ALL


@dataclass
class Group:
    """Evaluations that differ only in the seed of what was trained."""

    label: str
    members: list[Evaluation]

    @property
    def facts(self) -> dict[str, Any]:
        return self.members[0].facts


def fits(group: Group, block: Mapping[str, Any]) -> bool:
    """Return whether the group belongs to a printed block, by its images or by a recipe."""
    same_images = group.facts["dataset_name"] in papers.dataset(block["dataset"])["names"]
    return same_images or any(_is_of(group, row) for row in block["rows"])


def _is_of(group: Group, row: Mapping[str, Any]) -> bool:
    """Return whether the group was trained by the recipe of a printed row, or one equal to it."""
    names = [_recipe(row), *row.get("same_as", [])]
    return group.facts.get("experiment") is not None and group.facts["experiment"] in names


def _recipe(row: Mapping[str, Any]) -> str | None:
    """Return the recipe of a printed row: what reproduces it, or trains its method our way."""
    name: str | None = row.get("experiment", row.get("retrained"))
    return name


def block_rows(
    printed: Mapping[str, Any],
    block: Mapping[str, Any],
    ours: list[Group],
    reference: Group | None,
    columns: list[str],
    measured: list[str],
    complete: bool,
) -> list[Row]:
    """Return the rows of a printed block, each followed by ours of the same recipe.

    complete: also add a row with the command for every recipe that was not evaluated.
    """
    title = papers.dataset(block["dataset"])["title"]
    paper = printed["source"]["name"]
    compared = ours[0] if ours else reference
    facts = compared.facts if compared else None
    rows = []
    for row in block["rows"]:
        cells: dict[tuple[str, str], Cell] = {}
        for metric in measured:
            status = papers.status(printed, block, row, metric, facts)
            values = row.get(metric, [])
            for column, value in zip(printed["columns"], values):
                if value is not None:
                    text = f"{value:.{_decimals(printed, metric)}f}"
                    cells[column, metric] = Cell(value, status, printed=text)
            six = values[: len(IRREGULAR)]
            if MEAN in columns and len(six) == len(IRREGULAR) and None not in six:
                cells[MEAN, metric] = Cell(sum(six) / len(six), f"mean of printed values; {status}")
        rows.append(Row(row["method"], "paper", cells, papers.provenance(paper, row), title))
        if recipe := _recipe(row):
            mine = [g for g in ours if _is_of(g, row)]
            ours = [g for g in ours if g not in mine]
            rows += [our_row(g, title, columns, measured, reference) for g in mine]
            if complete and not mine:
                command = _command(recipe, printed, block["dataset"])
                rows.append(Row(recipe, "missing", {}, block=title, missing=command))
    return rows + [our_row(g, title, columns, measured, reference) for g in ours]


def _command(experiment: str, printed: Mapping[str, Any], name: str) -> str:
    """Return the commands from the download to the evaluation of a printed row's recipe."""
    dataset = papers.dataset(name)
    lines = [f"shard data={dataset['data']} source=DOWNLOAD out=SET"]
    masks = ""
    if printed["masks"] != "none":
        lines.append("masks source=test_mask.zip out=MASKS fixed=true")
        masks = "masks.url=MASKS "
    if weights := compose("train", [f"experiment={experiment}"]).config.objective.published():
        lines.append(f"fetch {' '.join(weights)}")
    lines.append(f"train experiment={experiment} data.url=SET run=RUN")
    lines.append(
        f"evaluate checkpoint=RUN/checkpoints/best data={dataset['data']} data.url=SET {masks}"
        f"protocol={printed['protocol']} split={dataset['split']} limit={dataset['images']}"
    )
    return " && ".join(f"python -m pipeline {line}" for line in lines)


def _decimals(printed: Mapping[str, Any], metric: str) -> int:
    """Return how many decimals the table prints; YAML drops trailing zeros."""
    rows = [row for block in printed["blocks"] for row in block["rows"]]
    values = [v for row in rows for v in row.get(metric, []) if v is not None]
    return max(len(f"{v!r}".partition(".")[2]) for v in values)


def our_row(
    group: Group, block: str, columns: list[str], measured: list[str], reference: Group | None
) -> Row:
    """Return one row of ours: a run with its intervals, or several seeds with their spread."""
    facts = group.facts
    summaries = [results.summarize(e.table, e.facts) for e in group.members]
    models = "; ".join(dict.fromkeys(receipts.model(e.facts) for e in group.members))
    proofs = {m: receipts.receipt(facts, m) | {receipts.MODEL: models} for m in measured}
    cells, empty = {}, []
    for column in columns:
        means = [{**s["buckets"], MEAN: s["mean6"], ALL: s["all"]}.get(column) for s in summaries]
        measures = [row for row in means if row]
        if not measures:
            empty.append(column)
        for metric in measured:
            values = [row[metric] for row in measures if metric in row]
            status = _status(proofs[metric], reference, metric)
            if len(values) > 1:
                std = float(np.std(values, ddof=1))
                cells[column, metric] = Cell(float(np.mean(values)), status, std=std, n=len(values))
            elif values:
                low, high = measures[0].get(f"{metric}_ci") or (None, None)
                cells[column, metric] = Cell(values[0], status, low, high, n=measures[0]["n"])
    source = f" ({facts['archive']})" if facts.get("archive") else ""
    where = f"{facts['dataset_name']} {facts['split']}{source}, {facts['pairs']} pairs"
    provenance = f"{_origin(facts)} on {where}"
    if len(group.members) > 1:
        provenance += f", seeds {', '.join(str(e.facts.get('seed')) for e in group.members)}"
    elif warning := results.warning(group.members[0].table, facts):
        provenance += f"; {warning}"
    provenance = "; ".join([provenance, *results.notes(facts)])
    row = Row(group.label, "ours", cells, provenance, block, _against(group, reference))
    row.receipts = {m: proofs[m] for m in dict.fromkeys(m for _, m in cells)}
    if empty and facts.get("run"):
        row.missing = (
            f"{', '.join(empty)}: python -m pipeline evaluate checkpoint={facts['run']} "
            f"data.url={facts['data_url']} masks.url=MASKS protocol={facts['protocol']} "
            f"split={facts['split']}"
        )
    return row


def _status(proof: Mapping[str, Any], reference: Group | None, metric: str) -> str:
    """Say whether a number has the receipt of the reference row, or in which part it differs."""
    if reference is None:
        return "no reference row"
    theirs = receipts.receipt(reference.facts, metric)
    if None in theirs["weights"].values():
        return "not measured of the reference row"
    parts = receipts.differences(theirs, proof)
    return f"other {', '.join(parts)} than the reference row" if parts else SAME_PAIRS


def _origin(facts: Mapping[str, Any]) -> str:
    """Describe what was measured: a run's or a model's weights, a baseline, or predictions."""
    if "predictions" in facts:
        return f"measured here, weights and code not verified: images in {facts['predictions']}"
    if facts["weights"] == "none":
        return "ours: a baseline without training"
    if "images_seen" in facts:
        chosen = f", {facts['selected']}" if "selected" in facts else ""
        return f"ours: {facts['weights']} weights after {facts['images_seen']} images{chosen}"
    return f"ours: {facts['weights']} weights"


def overall(group: Group) -> NDArray[np.float64]:
    """Return the PSNR of each image (mean of its six irregular holes) or pair, mean over seeds."""
    values = [results.per_image(e.table) for e in group.members]
    return np.asarray(np.mean(values, 0), np.float64)


def _against(group: Group, reference: Group | None) -> str:
    if reference is None or group is reference:
        return ""
    both = (receipts.receipt(g.facts, "psnr") for g in (reference, group))
    if parts := receipts.differences(*both):
        return f"other {', '.join(parts)}"
    test = intervals.paired_bootstrap(overall(group), overall(reference))
    low, high = test["ci"]
    if len(overall(group)) < intervals.FEWEST:
        return f"{test['difference']:+.3f} (too few images)"
    verdict = "worse" if high < 0 else "better" if low > 0 else "undecided"
    return f"{test['difference']:+.3f} [{low:+.3f}, {high:+.3f}] {verdict}"
