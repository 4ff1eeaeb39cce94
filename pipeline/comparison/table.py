"""The table of a comparison: its data, and as text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.common import console
from pipeline.evaluation import metrics

SAME_PAIRS = "same pairs"  # the status that needs no footnote


def describe(metric: str) -> tuple[str, int, int]:
    """Return heading, decimals and direction (0: not ranked) of a metric or of `weights`."""
    if metric == "weights":
        return "weights", 0, 0
    record = metrics.printed_metrics()[metric]
    return record.heading, record.digits, record.direction


class Cell(NamedTuple):
    """One number; `status` says how far it is comparable with the other rows."""

    value: float | None
    status: str = ""
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


@dataclass
class Table:
    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[Row]
    reference: str = ""  # label of the row that the others are compared with
    notes: list[str] = field(default_factory=list)

    def statuses(self) -> list[str]:
        """Return the statuses that need a footnote, in order of appearance."""
        statuses = [cell.status for row in self.rows for cell in row.cells.values()]
        return [s for s in dict.fromkeys(statuses) if s not in ("", SAME_PAIRS)]

    def marks(self) -> dict[str, str]:
        """Return the footnote letter of each status."""
        return {status: letter(i) for i, status in enumerate(self.statuses())}

    def provenances(self) -> list[tuple[str, str]]:
        """Return (label, provenance) of the rows that have one."""
        return list(dict.fromkeys((r.label, r.provenance) for r in self.rows if r.provenance))

    def missing(self) -> list[tuple[str, str]]:
        """Return (label, command) of the rows with empty cells that a command would fill."""
        return [(row.label, row.missing) for row in self.rows if row.missing]

    def rows_with(self, metric: str) -> list[Row]:
        """Return the rows that have a number of this metric, or no number at all."""
        return [r for r in self.rows if not r.cells or any(m == metric for _, m in r.cells)]

    def is_best(self, row: Row, column: str, metric: str) -> bool:
        """Return whether the row holds the best of our values on the same pairs.

        Values on other pairs are not ranked.
        """
        ours = [r.cells.get((column, metric)) for r in self.rows if r.kind == "ours"]
        ranked = [c for c in ours if c is not None and c.status == SAME_PAIRS]
        values = [c.value for c in ranked if c.value is not None]
        cell, direction = row.cells.get((column, metric)), describe(metric)[2]
        if not values or not direction or not any(cell is c for c in ranked) or cell is None:
            return False
        return cell.value == direction * max(direction * v for v in values)


def letter(number: int) -> str:
    """Return the letter of a footnote: a … z, aa …"""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def shown(cell: Cell | None, metric: str) -> str:
    """Format a cell without its footnote: `26.802`, `26.802 ± 0.020`, or `-`."""
    if cell is None or cell.value is None:
        return "-"
    if cell.printed:
        return cell.printed
    digits = describe(metric)[1]
    spread = f" ± {cell.std:.{digits}f}" if cell.std is not None else ""
    return f"{cell.value:.{digits}f}{spread}"


def as_text(table: Table) -> str:
    """Format for a terminal: a section per metric, our best starred, footnotes below."""
    lines = [table.title]
    for metric, grid in _grids(table, star="*"):
        lines += ["", describe(metric)[0], *console.table(grid, "<>")]
    return "\n".join([*lines, "", *_footnotes(table)]).rstrip()


def as_markdown(table: Table) -> str:
    """Format as Markdown: a section per metric, our best in bold, footnotes below."""
    lines = [f"## {table.title}"]
    for metric, grid in _grids(table, star="**"):
        head, *body = ([_plain(text) for text in row] for row in grid)
        lines += ["", f"### {describe(metric)[0]}", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" + "---:|" * (len(head) - 1))
        lines += [f"| {' | '.join(row)} |" for row in body]
    return (
        "\n".join([*lines, "", *(f"- {_plain(line)}" for line in _footnotes(table) if line)]) + "\n"
    )


def as_csv(table: Table) -> str:
    """Format as CSV, a line per number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = "block row kind column metric value low high std n status against provenance"
    writer.writerow(head.split())
    for row in table.rows:
        for (column, metric), cell in row.cells.items():
            numbers = (cell.value, cell.low, cell.high, cell.std, cell.n, cell.status)
            writer.writerow(
                [
                    row.block,
                    row.label,
                    row.kind,
                    column,
                    metric,
                    *numbers,
                    row.against,
                    row.provenance,
                ]
            )
    return buffer.getvalue()


def _grids(table: Table, star: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each metric with its rows of text, the heading first."""
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
                if cell is not None and cell.value is not None:
                    if table.is_best(row, column, metric):
                        text = f"{star}{text}{star}" if star == "**" else f"{star}{text}"
                    text += f" {marks[cell.status]}" if cell.status in marks else ""
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
    for sign in ("\\", "|", "<", "`", "_", "["):
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return text
