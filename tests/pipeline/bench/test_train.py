"""`bench train` and `bench checkpoint` do what they say: the shape of their answers."""

import pytest

from pipeline.bench import checkpoint, train


def test_the_stall_is_what_the_target_is_about():
    answer = checkpoint.run(megabytes=4, repetitions=5)
    rows = {row["name"]: row["seconds"] for row in answer["rows"]}
    assert set(rows) == {"stall", "in the thread", "torch.save"}
    assert all(len(seconds) == 5 for seconds in rows.values())
    goal = answer["targets"]["stall, ms"]
    assert goal["value"] == pytest.approx(1000 * sorted(rows["stall"])[2])
    assert goal["met"] == (goal["value"] <= 100)


@pytest.mark.slow
@pytest.mark.dist
def test_loop_loader_and_two_processes_are_measured_in_one_run():
    answer = train.run(repetitions=2, width=0.1, side=48)
    rows = {row["name"]: row for row in answer["rows"]}
    assert {"bare", "loop", "loader", "weak", "apart"} <= set(rows)
    assert all(len(row["seconds"]) == 2 and row["peak_bytes"] > 1e6 for row in rows.values())
    assert set(answer["targets"]) == {"loop's overhead", "data wait"}
    shares = {
        name: answer["ratios"][name]
        for name in ("weak scaling, 1 -> 2", "share of communication", "share of contention")
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert 0 < answer["ratios"]["loop's share of matrix product"] < 1
    assert 0 <= answer["ratios"]["data wait"] < 1
