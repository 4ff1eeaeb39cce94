"""`compare`: a table of our runs and of the results that the papers print.

Runs that differ only in their seed are one row: mean ± standard deviation over runs. Rows on the
same pairs as the reference row are compared with it by a paired bootstrap over images.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.comparison import papers, report
from pipeline.comparison.collect import Evaluation, collect, digest
from pipeline.comparison.rows import ALL, MEAN, Group, block_rows, fits, our_row, overall
from pipeline.comparison.table import Cell, Row, Table, as_csv, as_markdown, as_text
from pipeline.config.schema import CompareConfig
from pipeline.evaluation import metrics
from shards import store
from shards.masks import NAMES as IRREGULAR


def main(config: CompareConfig) -> dict[str, Any]:
    """Return `{"title", "reference", "rows", "missing", "text", "written"}`.

    With `out=`, also write compare.md, compare.csv and compare.html there and log them to MLflow.
    """
    groups: list[Group] = []
    if config.table == "1":
        table = weights_table()
    else:
        groups = group(collect(config.root, config.runs))
        table = build(groups, config.table, config.protocol, config.against)
    result: dict[str, Any] = {
        "title": table.title,
        "reference": table.reference,
        "rows": [{**vars(row), "cells": row.numbers()} for row in table.rows],
        "missing": dict(table.missing()),
        "text": as_text(table),
        "written": [],
    }
    if config.out is not None:
        ours = {row.label for row in table.rows if row.kind == "ours"}
        shown = [(g.label, g.members[0]) for g in groups if g.label in ours]
        page = report.render(table, shown)
        texts = {"md": as_markdown(table), "csv": as_csv(table), "html": page}
        for kind, text in texts.items():
            result["written"].append(store.join(config.out, f"compare.{kind}"))
            store.write(result["written"][-1], text.encode())
        if config.tracking.enabled:
            report.log(config, digest(e for g in groups for e in g.members), texts)
    return result


def show(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    return "\n".join([result["text"], *result["written"]])


def group(evaluations: Iterable[Evaluation]) -> list[Group]:
    """Group runs of the same recipe, length and set of pairs; keep everything else separate."""
    by_key: dict[Any, list[Evaluation]] = {}
    for evaluation in evaluations:
        key = evaluation.identity
        if evaluation.facts.get("recipe"):
            same = ("recipe", "images_seen", "weights", "protocol", "pairs_digest", "ssim")
            key = tuple(evaluation.facts[name] for name in same)
            key += tuple(str(evaluation.facts.get(name)) for name in ("metric_weights", "code"))
        by_key.setdefault(key, []).append(evaluation)
    groups = [Group(_label(members), members) for members in by_key.values()]
    uses = Counter(g.label for g in groups)
    for g in groups:
        if uses[g.label] > 1:
            facts = g.facts
            g.label += f", {facts['pairs']} pairs {facts['pairs_digest'][:4]}, {facts['ssim']}"
    return groups


def _label(members: list[Evaluation]) -> str:
    facts = members[0].facts
    if len({e.facts.get("seed") for e in members}) == 1:
        return str(facts["name"])
    return f"{facts.get('experiment') or facts['name']} ({len(members)} seeds)"


def build(
    groups: list[Group], name: str | None, protocol: str | None, against: str | None
) -> Table:
    """Lay out our results next to a printed table, or next to a protocol's main results.

    name: of the printed table; None: that of the protocol's main results. protocol: None: that of
    most evaluations. against: the reference row; None: the best. Raises ValueError if nothing was
    evaluated, or no row has that name.
    """
    complete = name is not None  # all printed rows, and the commands for those of ours not run yet
    printed = None
    if name is not None:
        printed = papers.table(name)
        title, protocol = printed["title"], printed["protocol"]
    elif not groups:
        raise ValueError("no evaluations found: run `evaluate checkpoint=RUN …` first")
    else:
        known = [g.facts["protocol"] for g in groups]
        protocol = protocol or max(known, key=known.count)
        title = f"protocol {protocol}"
        if protocol in papers.MAIN:
            printed = papers.table(papers.MAIN[protocol])
    ours = [g for g in groups if g.facts["protocol"] == protocol]
    columns, measured = _columns(printed, ours, mean=not complete)
    reference = _reference(ours, against)
    rows: list[Row] = []
    if printed is not None:
        for block in _blocks(printed, ours, every=complete):
            fitting = [g for g in ours if fits(g, block)]
            rows += block_rows(printed, block, fitting, reference, columns, measured, complete)
            ours = [g for g in ours if g not in fitting]
    others = "other images" if printed else ""
    rows += [our_row(g, others, columns, measured, reference) for g in ours]
    label = reference.label if reference else ""
    return Table(title, columns, measured, rows, label, _notes(printed, groups))


def _columns(
    printed: Mapping[str, Any] | None, ours: list[Group], mean: bool
) -> tuple[list[str], list[str]]:
    chosen = {m for g in ours for m in g.facts.get("metrics", ())}
    measured = list(metrics.printed_metrics(chosen=list(chosen)))
    if printed is not None:
        columns = list(printed["columns"])
        first = printed["blocks"][0]["rows"][0]
        measured = [m for m in measured if m in first or mean]
    else:
        buckets = [b for g in ours for b in g.members[0].table["bucket"].to_pylist()]
        columns = list(dict.fromkeys(buckets))
    if mean and set(IRREGULAR) <= set(columns):
        columns.append(MEAN)
    if mean and any(metrics.record(m).of_sets for m in measured):
        columns.append(ALL)
    return columns, measured


def _blocks(printed: Mapping[str, Any], ours: list[Group], every: bool) -> list[Mapping[str, Any]]:
    """Return the printed blocks to show: all (`every`), else those of the images we evaluated."""
    blocks = list(printed["blocks"])
    fitting = [b for b in blocks if any(fits(g, b) for g in ours)]
    return blocks if every else fitting or blocks[:1]


def _reference(ours: list[Group], against: str | None) -> Group | None:
    """Return the row to compare with: the named one, else the best on the most common pairs.

    Where several sets of pairs are equally common, the largest counts.
    """
    if against is not None:
        for candidate in ours:
            if against in (candidate.label, candidate.facts["name"]):
                return candidate
        labels = ", ".join(g.label for g in ours) or "none"
        raise ValueError(f"unknown against={against}: choose one of your rows ({labels})")
    if not ours:
        return None
    digests = [g.facts["pairs_digest"] for g in ours]
    shared = max(ours, key=lambda g: (digests.count(g.facts["pairs_digest"]), g.facts["pairs"]))
    same = [g for g in ours if g.facts["pairs_digest"] == shared.facts["pairs_digest"]]
    return max(same, key=lambda g: float(overall(g).mean()))


def _notes(printed: Mapping[str, Any] | None, groups: list[Group]) -> list[str]:
    notes = []
    if printed is not None:
        source = printed["source"]
        notes.append(source["citation"])
        notes += [note for note in (source.get("note"), printed.get("note")) if note]
    digests = {g.facts["pairs_digest"][:8] for g in groups}
    notes.append(f"our pairs: {', '.join(sorted(digests)) or 'none yet'}")
    return notes


def weights_table() -> Table:
    """Return MSA-Net's table 1: weights of the multi-scale structures, printed and exact."""
    printed = papers.table("1")
    columns = printed["columns"]
    rows = []
    for row in printed["rows"]:
        texts = [float(text.removesuffix("K")) * 1000 for text in row["printed"]]
        cells = {(c, "weights"): Cell(v, "rounded to thousands") for c, v in zip(columns, texts)}
        rows.append(Row(row["method"], "paper", cells, f"counted: {printed['counting']}"))
        counted = "counted in the network that we build"
        ours = {(c, "weights"): Cell(v, counted) for c, v in zip(columns, row["weights"])}
        rows.append(Row(row["structure"], "ours", ours, "ours"))
    citation = printed["source"]["citation"]
    return Table(printed["title"], columns, ["weights"], rows, notes=[citation])
