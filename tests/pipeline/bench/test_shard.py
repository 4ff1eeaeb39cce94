"""`bench shard` does what it says: the shape of its answer, on a few images."""

import shutil

from pipeline.bench import shard


def test_its_answer_has_five_raw_repetitions_of_every_row_and_the_design_target() -> None:
    answer = shard.run(images=24, repetitions=5)
    assert answer["bench"] == "shard"
    names = {row["name"] for row in answer["rows"]}
    assert {"ours", "webdataset"} <= names
    if shutil.which("nginx"):
        assert {"ours to storage", "loose files to storage"} <= names
        assert {"ours to storage / ours", "to storage: ours / loose files"} <= set(answer["ratios"])
    for row in answer["rows"]:
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == 5
        assert row["items"] == 24
    (goal,) = answer["targets"].values()
    assert goal["target"] == 0.6 and goal["met"] == (goal["value"] <= 0.6)
