import json
import shutil

import pytest

from pipeline.bench.loader import run
from pipeline.bench.timing import alternate, faster, target

ROWS = [
    *("part: read", "part: decode", "ours", "webdataset", "loose files"),
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


def busy(steps, work):
    def row():
        for _ in range(steps):
            sum(range(work))
            yield 1

    return row


def test_rows_take_turns_and_more_work_shows_as_slower():
    turns = []

    def noting(name, row):
        def steps():
            for items in row():
                turns.append(name)
                yield items

        return steps

    rows = {
        "one": noting("one", busy(20, 20_000)),
        "ten": noting("ten", busy(20, 200_000)),
        "alone": noting("alone", busy(3, 10)),
    }
    table = alternate(rows, 3, ["one", "ten"])
    assert turns == 4 * (["one", "ten"] * 20 + ["alone"] * 3)
    assert [row["items"] for row in table] == [20, 20, 3]
    assert all(len(row["seconds"]) == 3 for row in table)
    assert faster(table, "one", "ten") > 3 > 1 / 3 > faster(table, "ten", "one")


def test_targets_know_which_way_is_better():
    assert target(1.3, 1.25)["met"] and not target(1.2, 1.25)["met"]
    assert target(0.5, 1.0, at_least=False)["met"] and not target(2.0, 1.0, at_least=False)["met"]
