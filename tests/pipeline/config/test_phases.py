"""Schedules: who learns when, at which rate, and which schedules are refused."""

import math

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.groups import Phase
from pipeline.config.phases import check_phases, cycle, shares, turn_at

BOTH = ("generator", "discriminator")


def rates(phases, seen, batch=10, players=BOTH, **more):
    return turn_at(phases, seen, batch, players, **more).rates


def test_phases_are_looked_up_by_images_seen():
    phases = [Phase(until=10, lr=1.0), Phase(until=30, lr=2.0), Phase(lr=3.0)]
    found = [rates(phases, n, 1)["generator"] for n in (0, 9, 10, 29, 30, 10**9)]
    assert found == [1, 1, 2, 2, 3, 3]
    assert rates(phases[:2], 99, 1)["generator"] == 2
    assert rates([Phase(None, 2.0, 3.0)], 5, scale=0.5) == {"generator": 1.0, "discriminator": 1.5}


def test_a_player_without_a_rate_rests_and_one_of_every_kth_batch_learns_at_its_cycles_end():
    phases = [
        Phase(until=25, rates={"generator": 1.0}),
        Phase(until=60, rates={"discriminator": 2.0}),
        Phase(rates={"generator": 3.0, "discriminator": 4.0}, every={"generator": 3}),
    ]
    learning = [sorted(rates(phases, n)) for n in range(0, 130, 10)]
    d, both = ["discriminator"], sorted(BOTH)
    # The second phase begins with the first batch at or after its start, at 30 images.
    assert learning == [["generator"]] * 3 + [d] * 3 + [d, d, both, d, d, both, d]
    assert [cycle(phase) for phase in phases] == [1, 1, 3]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase(lr=2.0, warmup=40), [0.05, 0.55, 1.05, 1.55, 2, 2, 2, 2, 2, 2]),
        (Phase(lr=2.0, decay="linear"), [2, 1.8, 1.6, 1.4, 1.2, 1, 0.8, 0.6, 0.4, 0.2]),
        (Phase(lr=2.0, decay="cosine"), [1 + math.cos(math.pi * i / 10) for i in range(10)]),
    ],
)
def test_rates_warm_up_and_fall_to_0_at_the_end_of_the_phase(phase, expected):
    assert [rates([phase], n, length=100)["generator"] for n in range(0, 100, 10)] == (
        pytest.approx(expected)
    )
    # The same shape in a phase that begins later and ends by itself.
    moved = [Phase(until=50, lr=9.0), Phase(150, 2.0, warmup=phase.warmup, decay=phase.decay)]
    assert [rates(moved, n)["generator"] for n in range(50, 150, 10)] == pytest.approx(expected)


def test_shares_of_turns_add_up_to_the_run():
    phases = [Phase(until=30), Phase(until=200, every={"generator": 5})]
    found = list(shares(phases, 10, BOTH, 130))
    assert sum(share for share, _ in found) == pytest.approx(1)
    assert sum(share for share, turn in found if "generator" in turn.rates) == pytest.approx(
        (30 + 100 / 5) / 130
    )


@pytest.mark.parametrize("ends", [[], [None, 3], [5, 5], [9, 4, None]])
def test_phases_out_of_order_are_refused(ends):
    with pytest.raises(ConfigError, match="phases"):
        check_phases([Phase(until=end) for end in ends], BOTH, {})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("[{rates: {generater: 1}}]", "objective.phases.0.rates names generater: expected gen"),
        ("[{rates: {generator: 1}}]", "give discriminator no learning rate"),
        ("[{every: {edges: 2}}]", "objective.phases.0.every names edges: expected generator, disc"),
        ("[{without: [advs]}]", "objective.phases.0.without names advs: expected l1, l1_hole"),
        ("[{every: {generator: 0}}]", "objective.phases.0.every={generator: 0} is too small"),
        ("[{decay: sine}]", "invalid value objective.phases.0.decay=sine"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused_in_one_line(words, line):
    from pipeline.config import checks

    given = ["objective=musical_paper", "data.url=x", f"objective.phases={words}"]
    with pytest.raises(ConfigError) as refused:
        checks.train(compose("train", given).config)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_the_papers_refinement_follows_its_training():
    phases = compose("train", []).config.objective.phases
    assert [p.lr for p in phases] == [3e-4, 1e-4]
    assert rates(phases, 0)["generator"] == 3e-4
    assert rates(phases, 8_000_000)["generator"] == 1e-4
