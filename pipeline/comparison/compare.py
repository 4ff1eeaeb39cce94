"""`compare`: our runs side by side, beside the rows that the papers print.

Runs that differ in nothing but their seed are one row: mean ± standard deviation over runs. Rows on
the same pairs as the best one are set against it by a paired bootstrap over pictures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from models.multiscale import MultiScale
from pipeline.comparison import papers, report
from pipeline.comparison.collect import Evaluation, collect, digest
from pipeline.comparison.rows import MEAN, Group, block_rows, fits, our_row, overall
from pipeline.comparison.table import Cell, Row, Table, as_csv, as_markdown, as_text
from pipeline.config.schema import CompareConfig
from shards import store
from shards.masks import NAMES as IRREGULAR

COUNTED = "counted in the network that we build"


MEASURED = ("psnr", "ssim", "l1")


def main(config: CompareConfig) -> dict[str, Any]:
    """Returns `{"title", "rows", "statuses", "missing", "written", …}`; `show` prints the table.

    With `out=` also compare.md, compare.csv and compare.html there, logged to MLflow.
    """
    if config.table == "1":
        groups, sheet = [], table_1()
    else:
        groups = group(collect(config.root, config.runs))
        sheet = build(groups, config.table, config.protocol, config.against)
    result: dict[str, Any] = {
        "title": sheet.title,
        "reference": sheet.reference,
        "rows": [_row_json(row) for row in sheet.rows],
        "missing": {row.label: row.missing for row in sheet.rows if row.missing},
        "text": as_text(sheet),
        "written": [],
    }
    if config.out is not None:
        shown = [(g.label, g.members[0]) for g in groups if _is_shown(g, sheet)]
        page = report.render(sheet, shown, config.root)
        for name, text in (("md", as_markdown(sheet)), ("csv", as_csv(sheet)), ("html", page)):
            url = store.join(config.out, f"compare.{name}")
            store.write(url, text.encode())
            result["written"].append(url)
        if config.tracking.enabled:
            report.log(config, digest(e for g in groups for e in g.members), result["written"])
    return result


def _is_shown(group: Group, sheet: Table) -> bool:
    return any(row.kind == "ours" and row.label == group.label for row in sheet.rows)


def show(result: dict[str, Any]) -> str:
    return "\n".join([result["text"], *result["written"]])


def group(evaluations: Iterable[Evaluation]) -> list[Group]:
    """Runs of one recipe, length and set of pairs together; everything else alone."""
    found: dict[Any, list[Evaluation]] = {}
    for evaluation in evaluations:
        told = evaluation.facts
        key = evaluation.identity
        if told.get("recipe"):
            same = ("recipe", "images_seen", "weights", "protocol", "pairs_digest")
            key = tuple(told[name] for name in same)
        found.setdefault(key, []).append(evaluation)
    groups = [Group(_label(members), tuple(members)) for members in found.values()]
    labels = [g.label for g in groups]
    return [
        replace(g, label=f"{g.label}, {g.facts['pairs']} pairs {g.facts['pairs_digest'][:4]}")
        if labels.count(g.label) > 1
        else g
        for g in groups
    ]


def _label(members: list[Evaluation]) -> str:
    told = members[0].facts
    if len({e.facts.get("seed") for e in members}) == 1 or len(members) == 1:
        return str(told["name"])
    return f"{told.get('experiment') or told['name']} ({len(members)} seeds)"


def build(
    groups: list[Group], table: str | None, protocol: str | None, against: str | None
) -> Table:
    """The sheet of a printed table, or of a protocol with the table that it is known by.

    protocol: None: that of most evaluations. against: the row that the others are set against;
    None: the best. ValueError where nothing was evaluated, or no row has that name.
    """
    if table is None:
        if not groups:
            raise ValueError("nothing was evaluated yet: `evaluate checkpoint=RUN …` comes first")
        known = [g.facts["protocol"] for g in groups]
        protocol = protocol or max(known, key=known.count)
        printed = papers.table(papers.MAIN[protocol]) if protocol in papers.MAIN else None
    else:
        printed = papers.table(table)
        protocol = printed["protocol"]
    ours = [g for g in groups if g.facts["protocol"] == protocol]
    columns, measured = _columns(printed, ours, table is None)
    reference = _reference(ours, against)
    rows: list[Row] = []
    for block in _blocks(printed, ours, every=table is not None):
        fitting = [g for g in ours if fits(g, block)] if block else ours
        rows += block_rows(
            printed, block, fitting, reference, columns, measured, complete=table is not None
        )
        ours = [g for g in ours if g not in fitting]
    if ours:
        rows += [our_row(g, "other pictures", columns, measured, reference) for g in ours]
    title = _title(printed, protocol, table)
    sheet = Table(title, columns, measured, rows, reference.label if reference else "")
    sheet.notes = _notes(printed, groups)
    return sheet


def _title(printed: Mapping[str, Any] | None, protocol: str, table: str | None) -> str:
    if printed is None or table is None:
        return f"protocol {protocol}"
    paper = papers.load()["papers"][printed["paper"]]["name"]
    return f"{paper}, table {printed['name'].rpartition('/')[2]}: {printed['caption']}"


def _columns(
    printed: Mapping[str, Any] | None, ours: list[Group], mean: bool
) -> tuple[list[str], list[str]]:
    if printed is not None:
        columns = list(printed["columns"])
        rows = [row for block in printed["blocks"] for row in block["rows"]]
        measured = [m for m in MEASURED if m in rows[0] or mean]
    else:
        columns = list(
            dict.fromkeys(b for g in ours for b in g.members[0].table["bucket"].to_pylist())
        )
        measured = list(MEASURED)
    if mean and set(IRREGULAR) <= set(columns):
        columns.append(MEAN)
    return columns, measured


def _blocks(
    printed: Mapping[str, Any] | None, ours: list[Group], every: bool
) -> list[Mapping[str, Any] | None]:
    """The printed blocks to show: all of a table asked for, else those of our pictures."""
    if printed is None:
        return [None]
    blocks = list(printed["blocks"])
    fitting = [b for b in blocks if any(fits(g, b) for g in ours)]
    return blocks if every else fitting or blocks[:1]


def _reference(ours: list[Group], against: str | None) -> Group | None:
    """The row the others are set against: the named one, else the best on the pairs that most of
    them share (of several such, the most pairs)."""
    if against is not None:
        for candidate in ours:
            if against in (candidate.label, candidate.facts["name"]):
                return candidate
        there = ", ".join(g.label for g in ours) or "none"
        raise ValueError(f"against={against} is no row of ours here: {there}")
    if not ours:
        return None
    digests = [g.facts["pairs_digest"] for g in ours]
    shared = max(ours, key=lambda g: (digests.count(g.facts["pairs_digest"]), g.facts["pairs"]))
    alike = [g for g in ours if g.facts["pairs_digest"] == shared.facts["pairs_digest"]]
    return max(alike, key=lambda g: float(overall(g).mean()))


def _notes(printed: Mapping[str, Any] | None, groups: list[Group]) -> list[str]:
    notes = []
    if printed is not None:
        notes.append(papers.load()["papers"][printed["paper"]]["citation"])
        if printed.get("note"):
            notes.append(printed["note"])
    digests = {g.facts["pairs_digest"][:8] for g in groups}
    notes.append(f"pairs of ours: {', '.join(sorted(digests)) or 'none yet'}")
    return notes


def _row_json(row: Row) -> dict[str, Any]:
    cells = [
        {"column": column, "metric": metric, **cell._asdict()}
        for (column, metric), cell in row.cells.items()
    ]
    told = {"label": row.label, "kind": row.kind, "block": row.block, "against": row.against}
    return {**told, "provenance": row.provenance, "cells": cells}


def weights(structure: str) -> list[int]:
    """Convolution weights of the branches, and with the 1×1 reduction, of 128 input channels."""
    none = {"channel": "none", "spatial": "none", "norm": "none"}
    built = MultiScale(128, 48, structure, gate="sigmoid", squeeze="full", **none)
    inside = [built.branches, nn.ModuleList([built.branches, built.reduce])]
    return [
        sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Conv2d)) for part in inside
    ]


def table_1() -> Table:
    printed = papers.table("1")
    columns = printed["columns"]
    rows = []
    for row in printed["rows"]:
        texts = [float(text.removesuffix("K")) * 1000 for text in row["printed"]]
        cells = {(c, "weights"): Cell(v, "rounded to thousands") for c, v in zip(columns, texts)}
        rows.append(Row(row["method"], "paper", cells, f"counted: {printed['counting']}"))
        counts = weights(row["structure"])
        ours = {(c, "weights"): Cell(float(v), COUNTED) for c, v in zip(columns, counts)}
        rows.append(Row(row["structure"], "ours", ours, "ours"))
    paper = papers.load()["papers"][printed["paper"]]
    title = f"{paper['name']}, table 1: {printed['caption']}"
    return Table(title, columns, ["weights"], rows, notes=[paper["citation"]])
