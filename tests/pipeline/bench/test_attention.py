"""`bench attention` does what it says, on a small map."""

import pytest
import torch

from pipeline.bench import attention


def test_its_answer_has_every_row_ratio_and_target() -> None:
    answer = attention.run(batch=2, size=16, channels=8, repetitions=5)
    assert answer["bench"] == "attention"
    rows = {row["name"]: row for row in answer["rows"]}
    cases = ("center forward", "center both", "irregular both")
    expected = {f"{case} {name}" for case in cases for name in ("loop", "ours")}
    expected |= {"center both other", "irregular both other"}
    assert rows.keys() == expected
    assert all(len(row["seconds"]) == 5 for row in rows.values())
    assert all(row["peak_bytes"] > 0 for row in rows.values())
    assert [goal["target"] for goal in answer["targets"].values()] == [20.0, 10.0, 4.0, 70.0]
    assert 0.3 < answer["work"]["hole ratio"]["irregular"] <= 0.4


def test_methods_that_disagree_are_not_timed() -> None:
    def wrong(features: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [x + 1e-3 * mask for x in attention.ours(features, mask)]

    methods = {"loop": attention.loop, "wrong": wrong}
    with pytest.raises(RuntimeError, match="wrong differs from the loop"):
        attention.assert_equal(methods, torch.randn(1, 4, 8, 8), attention.center(1, 8))
