"""GLC's three phases: who learns, and that a run resumes inside each and at each boundary."""

import pytest
import torch

from pipeline.config.compose import compose
from pipeline.config.phases import turn_at
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.training import checkpointing, method, resume
from pipeline.training.loop import step
from tests.support.strategies import engine_of

STEPS = 6
WORDS = [
    *("model=glc", "model.width=0.1", "model.dilations=[2]", "objective=glc", "objective.adv=0.1"),
    *("objective.d_width=0.1", "data.crop=64", "batch=4", "ema=0.5", "threads=1"),
    *("precision=fp32", "parallel.channels_last=false"),
]
PHASES = ("objective.phases=[{until: 8, rates: {generator: 1.0}, without: [adv]}, "
          "{until: 16, rates: {discriminator: 1.0}}, "
          "{until: null, rates: {generator: 1.0, discriminator: 1.0}}]")  # fmt: skip


def state(networks):
    """Every weight, buffer, average and moment."""
    found = {}
    for player in networks.players:
        for file, module in player.networks.items():
            found |= {f"{file}/{name}": t.clone() for name, t in module.state_dict().items()}
        for name, moments in player.moments().items():
            found |= {f"{player.name}/{name}/{k}": t.clone() for k, t in moments.items()}
    return found


def different(one, two):
    assert one.keys() >= two.keys()
    return {name for name in one if name not in two or not torch.equal(one[name], two[name])}


def trained(config, engine, folder, start=None):
    """Train to the end, from the checkpoint at `start`; the state after each step."""
    networks = method.build(config, engine)
    if start:
        resume.restore(checkpoints.latest(f"{folder}/{start}"), networks.players)
    engine.start(networks.players)
    states, terms = [state(networks)], []
    for number in range(start or 0, STEPS):
        drawn = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (4, 64, 64, 3), generator=drawn).to(torch.uint8)
        masks = (torch.rand(4, 64, 64, generator=drawn) < 0.3).to(torch.uint8)
        networks.begin(turn_at(config.objective.phases, 4 * number, 4, config.objective.players))
        terms.append(set(step(networks, engine, images, masks, config, 4 * number)))
        assert engine.step(networks.learning, config.ema)
        states.append(state(networks))
        if not start:
            saver = checkpointing.Saver(folder_at(f"{folder}/{number + 1}"), 1)
            files = checkpointing.checkpoint_files(networks.players)
            saver.save(4 * (number + 1), files, {"dataset": "noise"})
            saver.close()
    return states, terms


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """States of a run, and of runs that resumed from its checkpoints."""
    config = compose("train", [*WORDS, PHASES]).config
    folder = tmp_path_factory.mktemp("glc")
    with pytest.MonkeyPatch.context() as patch, engine_of(config, patch) as engine:
        straight, terms = trained(config, engine, folder)
        resumed = {at: trained(config, engine, folder, at)[0] for at in range(1, STEPS)}
    return straight, terms, resumed


def test_each_phase_changes_its_networks_alone_and_not_a_bit_of_the_other(runs):
    straight, terms, _ = runs
    generator, discriminator = {"g/l2"}, {"d/loss"}
    assert (
        terms == [generator] * 2 + [discriminator] * 2 + [generator | discriminator | {"g/adv"}] * 2
    )
    for number, (before, after) in enumerate(zip(straight, straight[1:])):
        changed = {name.partition("/")[0].partition("_")[0] for name in different(after, before)}
        expected = [{"generator"}, {"discriminator"}, {"generator", "discriminator"}][number // 2]
        assert changed == expected, number
    buffers = [name for name in straight[0] if "running_mean" in name]
    assert {name.partition("/")[0] for name in buffers} == {
        "generator", "generator_ema", "discriminator"
    }  # fmt: skip


@pytest.mark.parametrize("at", range(1, STEPS))
def test_a_run_that_resumes_inside_a_phase_or_at_its_boundary_ends_with_the_same_bits(runs, at):
    straight, _, resumed = runs
    for ours, theirs in zip(resumed[at], straight[at:], strict=True):
        assert not different(theirs, ours)
