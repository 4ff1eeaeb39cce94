"""The table of a comparison: its data, and as text, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline.common import console
from pipeline.evaluation import metrics, receipts

SAME_PAIRS = "same pairs"  # the status that needs no footnote


def describe(metric: str) -> tuple[str, int, int]:
    """Return heading, decimals and direction (0: not ranked) of a metric or of `weights`."""
    if metric == "weights":
        return "weights", 0, 0
    record = metrics.record(metric)
    return record.heading, record.digits, record.direction


class Cell(NamedTuple):
    """One number; `status` says how far it is comparable with the other rows."""

    value: float
    status: str
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    std: float | None = None  # over seeds
    n: int | None = None  # pairs, or runs where `std` is given
    printed: str = ""  # as a paper prints it


@dataclass
class Row:
    label: str
    kind: str  # paper, ours or missing
    cells: dict[tuple[str, str], Cell]  # (column, metric)
    provenance: str = ""
    block: str = ""
    against: str = ""  # the paired difference to the reference row
    missing: str = ""  # the command that would fill the row's empty cells
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each metric

    def numbers(self) -> list[dict[str, Any]]:
        """Return a record of each cell, as JSON and CSV show it."""
        return [{"column": c, "metric": m, **cell._asdict()} for (c, m), cell in self.cells.items()]


@dataclass
class Table:
    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[Row]
    reference: str = ""  # label of the row that the others are compared with
    notes: list[str] = field(default_factory=list)

    def marks(self) -> dict[str, str]:
        """Return the footnote letter of each status that needs one, in order of appearance."""
        statuses = dict.fromkeys(c.status for row in self.rows for c in row.cells.values())
        statuses.pop(SAME_PAIRS, None)
        return {status: letter(i) for i, status in enumerate(statuses)}

    def provenances(self) -> list[tuple[str, str]]:
        """Return (label, provenance) of the rows that have one."""
        return list(dict.fromkeys((r.label, r.provenance) for r in self.rows if r.provenance))

    def receipts(self) -> list[tuple[str, str]]:
        """Return (row and metric, receipt) of every number of ours."""
        return [
            (f"{row.label}, {describe(metric)[0]}", receipts.as_text(parts))
            for row in self.rows
            for metric, parts in row.receipts.items()
        ]

    def missing(self) -> list[tuple[str, str]]:
        """Return (label, command) of the rows with empty cells that a command would fill."""
        return [(row.label, row.missing) for row in self.rows if row.missing]

    def rows_with(self, metric: str) -> list[Row]:
        """Return the rows that have a number of this metric, or no number at all.

        A block holds one receipt: rows with another follow in a block that names what differs.
        """
        rows = [r for r in self.rows if not r.cells or any(m == metric for _, m in r.cells)]
        known: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda r: r.label != self.reference):
            if metric in row.receipts and row.receipts[metric] not in known.get(row.block, []):
                known.setdefault(row.block, []).append(row.receipts[metric])
        shown = []
        for row in rows:
            number = known[row.block].index(row.receipts[metric]) if metric in row.receipts else 0
            if number:
                parts = receipts.differences(known[row.block][0], row.receipts[metric])
                text = f"other {', '.join(parts)}" + (f" ({number})" if number > 1 else "")
                row = replace(row, block=" · ".join(filter(None, [row.block, text])))
            shown.append(row)
        blocks = list(dict.fromkeys(row.block for row in shown))
        return sorted(shown, key=lambda row: blocks.index(row.block))

    def is_best(self, row: Row, column: str, metric: str) -> bool:
        """Return whether the row holds the best of our values on the same pairs.

        Values on other pairs are not ranked.
        """
        cell, direction = row.cells.get((column, metric)), describe(metric)[2]
        if cell is None or cell.status != SAME_PAIRS or row.kind != "ours" or not direction:
            return False
        ours = [r.cells.get((column, metric)) for r in self.rows if r.kind == "ours"]
        values = [direction * c.value for c in ours if c is not None and c.status == SAME_PAIRS]
        return direction * cell.value == max(values)


def letter(number: int) -> str:
    """Return the letter of a footnote: a … z, aa …"""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def shown(cell: Cell | None, metric: str) -> str:
    """Format a cell without its footnote: `26.802`, `26.802 ± 0.020`, or `-`."""
    if cell is None:
        return "-"
    if cell.printed:
        return cell.printed
    digits = describe(metric)[1]
    spread = f" ± {cell.std:.{digits}f}" if cell.std is not None else ""
    return f"{cell.value:.{digits}f}{spread}"


def as_text(table: Table) -> str:
    """Format for a terminal: a section per metric, our best starred, footnotes below."""
    lines = [table.title]
    for metric, grid in _grids(table, "*{}"):
        lines += ["", describe(metric)[0], *console.table(grid, "<>")]
    return "\n".join([*lines, "", *_footnotes(table)]).rstrip()


def as_markdown(table: Table) -> str:
    """Format as Markdown: a section per metric, our best in bold, footnotes below."""
    lines = [f"## {table.title}"]
    for metric, grid in _grids(table, "**{}**"):
        head, *body = ([_plain(text) for text in row] for row in grid)
        lines += ["", f"### {describe(metric)[0]}", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" + "---:|" * (len(head) - 1))
        lines += [f"| {' | '.join(row)} |" for row in body]
    lines += ["", *(f"- {_plain(line)}" for line in _footnotes(table) if line), ""]
    return "\n".join(lines)


def as_csv(table: Table) -> str:
    """Format as CSV, a line per number."""
    buffer = io.StringIO()
    head = "block row kind column metric value low high std n status against provenance"
    writer = csv.DictWriter(buffer, head.split(), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerows({**vars(row), "row": row.label, **number} for number in row.numbers())
    return buffer.getvalue()


def _grids(table: Table, best: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each metric with its rows of text, the heading first; best: format of our best."""
    marks = table.marks()
    for metric in table.metrics:
        against = [f"vs. {table.reference}"] if table.reference and metric == "psnr" else []
        grid, block = [["", *table.columns, *against]], ""
        for row in table.rows_with(metric):
            if row.block != block:
                block = row.block
                grid.append([f"[{block}]", *[""] * (len(grid[0]) - 1)])
            line = [f"{row.label}{' (paper)' if row.kind == 'paper' else ''}"]
            for column in table.columns:
                cell = row.cells.get((column, metric))
                text = shown(cell, metric)
                if table.is_best(row, column, metric):
                    text = best.format(text)
                if cell is not None and cell.status in marks:
                    text += f" {marks[cell.status]}"
                line.append(text)
            grid.append(line + ([row.against] if against else []))
        yield metric, grid


def _footnotes(table: Table) -> list[str]:
    """Return the lines below the numbers: statuses, provenance, notes, missing rows."""
    lines = [f"{mark}: {status}" for status, mark in table.marks().items()]
    lines += ["", *(f"{label}: {text}" for label, text in table.provenances())]
    lines += ["", *table.notes]
    return [*lines, "", *(f"missing {label}: {text}" for label, text in table.missing())]


def _plain(text: str) -> str:
    """Escape what Markdown would interpret."""
    return re.sub(r"[\\|`_\[]", r"\\\g<0>", text).replace("<", "&lt;")
