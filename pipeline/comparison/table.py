"""A comparison as data, and as text for a terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

DIGITS = {"psnr": 3, "ssim": 4, "l1": 3, "weights": 0}
TITLES = {"psnr": "PSNR dB", "ssim": "SSIM", "l1": "mean L1 %", "weights": "weights"}
SAME = "same pairs"  # what goes without a footnote
BETTER = {"psnr": 1, "ssim": 1, "l1": -1, "weights": 0}


class Cell(NamedTuple):
    """One number. `status`: what it is to the results beside it."""

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
    kind: str  # paper, ours, missing
    cells: dict[tuple[str, str], Cell]  # (column, metric)
    provenance: str = ""
    block: str = ""
    against: str = ""  # the paired difference to the row that it is compared with
    missing: str = ""  # the command that would fill the row's empty cells


@dataclass
class Table:
    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[Row]
    reference: str = ""  # label of the row that `against` is about
    notes: list[str] = field(default_factory=list)

    def statuses(self) -> list[str]:
        """Every status that occurs, in order of appearance; its letter is its place."""
        found = [row.cells[key].status for row in self.rows for key in row.cells]
        return [s for s in dict.fromkeys(found) if s not in ("", SAME)]

    def rows_with(self, metric: str) -> list[Row]:
        """Rows that have a number of this metric, or lack all of them."""
        return [r for r in self.rows if not r.cells or any(m == metric for _, m in r.cells)]

    def best(self, column: str, metric: str) -> float | None:
        """The best of our values that are of the same pairs: of others it would mean nothing."""
        cells = [row.cells.get((column, metric)) for row in self.rows if row.kind == "ours"]
        same = [c for c in cells if c is not None and c.status == SAME]
        values = [c.value for c in same if c.value is not None]
        sign = BETTER[metric]
        return sign * max(sign * v for v in values) if values and sign else None

    def is_best(self, row: Row, column: str, metric: str) -> bool:
        cell = row.cells.get((column, metric))
        if row.kind != "ours" or cell is None or cell.value is None or cell.status != SAME:
            return False
        return cell.value == self.best(column, metric)


def letter(number: int) -> str:
    """a … z, aa … of a footnote."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def shown(cell: Cell | None, metric: str) -> str:
    """A cell without its footnote: `26.802`, `26.802 ± 0.020`, or `-`."""
    if cell is None or cell.value is None:
        return "-"
    if cell.printed:
        return cell.printed
    digits = DIGITS[metric]
    spread = f" ± {cell.std:.{digits}f}" if cell.std is not None else ""
    return f"{cell.value:.{digits}f}{spread}"


def as_text(sheet: Table) -> str:
    """For a terminal: a section a metric, our best starred, footnotes below."""
    lines = [sheet.title]
    for metric, grid in _grids(sheet, star="*"):
        widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
        lines += ["", TITLES[metric]]
        for row in grid:
            first, *rest = (text.rjust(width) for text, width in zip(row, widths))
            lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join([*lines, "", *_below(sheet)]).rstrip()


def as_markdown(sheet: Table) -> str:
    lines = [f"## {sheet.title}"]
    for metric, grid in _grids(sheet, star="**"):
        head, *body = ([_plain(text) for text in row] for row in grid)
        lines += ["", f"### {TITLES[metric]}", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" + "---:|" * (len(head) - 1))
        lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join([*lines, "", *(f"- {_plain(line)}" for line in _below(sheet) if line)]) + "\n"


def as_csv(sheet: Table) -> str:
    """One line a number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = "block row kind column metric value low high std n status against provenance"
    writer.writerow(head.split())
    for row in sheet.rows:
        for (column, metric), cell in row.cells.items():
            told = (cell.value, cell.low, cell.high, cell.std, cell.n, cell.status)
            writer.writerow(
                [row.block, row.label, row.kind, column, metric, *told, row.against, row.provenance]
            )
    return buffer.getvalue()


def _grids(sheet: Table, star: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each metric with its rows of text, the head first."""
    marks = {status: letter(i) for i, status in enumerate(sheet.statuses())}
    for metric in sheet.metrics:
        against = [f"against {sheet.reference}"] if sheet.reference and metric == "psnr" else []
        grid, block = [["", *sheet.columns, *against]], ""
        for row in sheet.rows_with(metric):
            if row.block != block:
                block = row.block
                grid.append([f"[{block}]", *[""] * (len(grid[0]) - 1)])
            line = [f"{row.label}{' (paper)' if row.kind == 'paper' else ''}"]
            for column in sheet.columns:
                cell = row.cells.get((column, metric))
                text = shown(cell, metric)
                if cell is not None and cell.value is not None:
                    if sheet.is_best(row, column, metric):
                        text = f"{star}{text}{star}" if star == "**" else f"{star}{text}"
                    text += f" {marks[cell.status]}" if cell.status in marks else ""
                line.append(text)
            grid.append(line + ([row.against] if against else []))
        yield metric, grid


def _below(sheet: Table) -> list[str]:
    lines = [f"{letter(i)}: {status}" for i, status in enumerate(sheet.statuses())]
    told = [(row.label, row.provenance) for row in sheet.rows if row.provenance]
    lines += ["", *(f"{label}: {text}" for label, text in dict.fromkeys(told))]
    lines += ["", *sheet.notes]
    missing = [(row.label, row.missing) for row in sheet.rows if row.missing]
    lines += ["", *(f"missing {label}: {text}" for label, text in missing)]
    return lines


def _plain(text: str) -> str:
    """Text that Markdown takes as it stands."""
    for sign in ("\\", "|", "<", "`", "_", "["):
        text = text.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return text
