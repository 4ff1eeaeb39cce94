"""What the terminal shows: columns by hand, progress on a terminal and into a file."""

import pytest

from pipeline.common import console


def test_columns_are_aligned_by_their_widest_cell():
    rows = [["run", "images", "psnr"], ["a", 5, "24.1"], ["longer", 1000, None]]
    assert console.table(rows, "<>") == [
        "run     images  psnr",
        "a            5  24.1",
        "longer    1000  None",
    ]
    assert console.table([["a", ""], ["bb", "c"]]) == ["a", "bb  c"]
    assert console.table([]) == []


@pytest.mark.parametrize(
    ("terminal", "every", "printed"),
    [
        (True, 1000.0, "\r\x1b[K1 of 2\r\x1b[K2 of 2\n"),  # rewritten in place
        (False, 0.0, "1 of 2\n2 of 2\n"),
        (False, 1000.0, ""),  # a log file gets no line before its time
    ],
)
def test_progress_is_one_live_line_on_a_terminal_and_few_lines_elsewhere(
    terminal, every, printed, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    show = console.live(every)
    show("1 of 2", False)
    show("2 of 2", True)
    assert capsys.readouterr().err == printed


def test_only_the_process_that_is_shown_prints_its_progress(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    console.progress("evaluate", 4, shown=False)(4)
    assert capsys.readouterr().err == ""
    console.progress("evaluate", 4)(4)
    assert "evaluate: 4/4 pairs" in capsys.readouterr().err
