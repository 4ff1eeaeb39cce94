import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench.loader import run
from pipeline.bench.timing import alternate, compare, faster, target

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    *("part: read", "part: decode", "ours", "webdataset"),
    *("ours, helped", "webdataset, helped", "loose files, helped"),
]


@pytest.mark.slow
def test_the_loader_bench_compares_the_same_work_in_the_promised_shape():
    """A set of two batches: the figures mean nothing, the shape and the counts do."""
    found = run(images=128, repetitions=2, whole=False)
    assert json.loads(json.dumps(found)) == found
    expected = ROWS + (["eighth", "eighth from storage"] if shutil.which("nginx") else [])
    assert [row["name"] for row in found["rows"]] == expected
    for row in found["rows"]:
        assert row["items"] == 128 and len(row["seconds"]) == len(row["cpu_seconds"]) == 2
        assert all(seconds > 0 for seconds in row["cpu_seconds"])
    assert found["bench"] == "loader" and found["device"]["cores"] >= 1
    for goal in found["targets"].values():
        assert goal["met"] == (goal["value"] >= goal["target"])


def test_rows_take_turns_and_more_work_shows_as_slower():
    turns = []

    def busy(name, work):
        def row():
            turns.append(name)
            sum(range(work))
            return 20

        return row

    table = alternate({"one": busy("one", 200_000), "ten": busy("ten", 2_000_000)}, 3)
    assert turns == 4 * ["one", "ten"]
    assert [row["items"] for row in table] == [20, 20]
    assert all(len(row["seconds"]) == len(row["cpu_seconds"]) == 3 for row in table)
    assert faster(table, "one", "ten") > 3 > 1 / 3 > faster(table, "ten", "one")


def test_a_ratio_counts_items_and_has_its_target_and_absent_rows_have_none():
    table = [
        {"name": "a", "items": 10, "cpu_seconds": [1.0, 2.0, 1.0]},
        {"name": "b", "items": 5, "cpu_seconds": [2.0, 3.0, 1.0]},
    ]
    pairs = {"a / b": ("a", "b", 2.5), "b / a": ("b", "a", None), "a / c": ("a", "c", 1.0)}
    ratios, targets = compare(table, pairs)
    assert ratios == {"a / b": 3.0, "b / a": pytest.approx(1 / 3)}
    assert targets == {"a / b": {"value": 3.0, "target": 2.5, "met": True}}


def test_the_peak_is_that_of_each_row():
    """In a process of its own, where no other test's threads free memory meanwhile."""
    code = (
        "from pipeline.bench.timing import alternate\n"
        "rows = {'large': lambda: len(b'1' * (64 << 20)), 'small': lambda: len(b'1' * (1 << 20))}\n"
        "large, small = (entry['peak_bytes'] for entry in alternate(rows, 1))\n"
        "print(large - small)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) == pytest.approx(63 << 20, rel=0.1), done.stderr


def test_targets_know_which_way_is_better():
    assert target(1.3, 1.25)["met"] and not target(1.2, 1.25)["met"]
    assert target(0.5, 1.0, at_least=False)["met"] and not target(2.0, 1.0, at_least=False)["met"]
