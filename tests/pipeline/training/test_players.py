"""Players: who learns from a batch, what a resting one keeps, and how parts share a file."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import Prediction
from pipeline.common.errors import ConfigError
from pipeline.config.groups import ObjectiveConfig, Phase
from pipeline.config.phases import turn_at
from pipeline.runs.folder import folder_at
from pipeline.training import checkpointing, resume
from pipeline.training.method import Batch, Loss, Method, backward
from pipeline.training.network import TrainableNetwork
from pipeline.training.run_log import StepLog

NAMES = ("generator.first", "generator.second", "discriminator")


class Whole(nn.Module):
    """A generator of two parts, each with a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))

    def forward(self, image, mask):
        return Prediction(self.second(self.first(torch.cat([image, mask], 1))), {})


class Toy(Method):
    paints = "generator.second"

    def losses(self, batch):
        first, second, discriminator = self.players
        raw = second(first(torch.cat([batch.image, batch.mask], 1)))
        logits = discriminator.judge(raw)
        for player in (first, second):
            loss = Loss(player)
            if player is second:
                loss.add("g/l2", 1.0, lambda: (raw - batch.image).square().mean())
                loss.add("g/adv", 0.1, lambda: -logits.mean())
            yield loss
        loss = Loss(discriminator)
        loss.add("d/loss", 1.0, lambda: discriminator(raw.detach()).mean())
        yield loss


def toy(phases):
    """The method outside an engine: three players of one optimizer each."""
    torch.manual_seed(0)
    made = object.__new__(Toy)
    made.generator, judge = Whole(), nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    parts = [made.generator.first, made.generator.second, judge]
    made.players = [
        TrainableNetwork(name, module, module, torch.optim.Adam(module.parameters(), lr=0.1))
        for name, module in zip(NAMES, parts)
    ]
    made.objective = ObjectiveConfig(phases=phases)
    made.config = SimpleNamespace(objective=made.objective)
    made.pretrained, made.fixed = {}, []
    return made


ENGINE = SimpleNamespace(
    autocast=torch.enable_grad, backward=lambda loss, player: loss.backward(retain_graph=True)
)


def steps(method, numbers):
    """Take the steps of these numbers, one image each."""
    for number in numbers:
        method.begin(turn_at(method.objective.phases, number, 1, NAMES))
        drawn = torch.Generator().manual_seed(number)
        image = torch.rand(2, 3, 6, 6, generator=drawn)
        mask = (torch.rand(2, 1, 6, 6, generator=drawn) < 0.3).float()
        backward(method, ENGINE, Batch(image, mask), 1.0)
        for player in method.learning:
            player.optimizer.step()
        for player in method.players:
            player.optimizer.zero_grad()


def states(method):
    return {
        p.name: {k: t.clone() for k, t in p.module.state_dict().items()} for p in method.players
    }


PHASES = [
    Phase(until=2, rates={"generator.second": 0.1}),
    Phase(until=4, rates={"discriminator": 0.1}),
    Phase(rates={"generator.first": 0.1, "generator.second": 0.1, "discriminator": 0.1},
          every={"generator.second": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "learning"),
    [(0, {"generator.second"}), (2, {"discriminator"}), (4, {"generator.first", "discriminator"})],
)
def test_a_resting_player_keeps_weights_and_running_statistics(number, learning):
    method = toy(PHASES)
    before = states(method)
    steps(method, [number])
    after = states(method)
    for name in NAMES:
        same = all(torch.equal(after[name][k], before[name][k]) for k in before[name])
        # "first" has no loss of its own: its gradient comes through "second", at the latter's turn.
        expected = name not in learning or name == "generator.first"
        kept = [k for k in before[name] if "running" not in k and "tracked" not in k]
        if name == "generator.first" and name in learning:
            assert all(torch.equal(after[name][k], before[name][k]) for k in kept)
        else:
            assert same == expected, name
    assert {p.name for p in method.learning} == learning
    assert method.trains_image == (number != 2)


def test_frozen_norms_are_set_again_after_a_validation():
    method = toy([Phase(frozen=["generator.second", "discriminator"])])
    before = states(method)
    for number in range(3):
        method.generator.train()  # as the end of a validation leaves it
        steps(method, [number])
    after = states(method)
    for name, frozen in zip(NAMES, (False, True, True)):
        unchanged = torch.equal(after[name]["1.running_mean"], before[name]["1.running_mean"])
        assert unchanged == frozen, name
    with pytest.raises(ConfigError, match="frozen module generator.third.*generator.first.0"):
        toy([Phase(frozen=["generator.third"])]).begin(
            turn_at([Phase(frozen=["generator.third"])], 0, 1, NAMES)
        )


def test_parts_of_a_generator_share_its_file_and_resume_bit_for_bit(tmp_path):
    whole = toy(PHASES)
    steps(whole, range(9))
    for cut in (3, 4, 6):
        first = toy(PHASES)
        steps(first, range(cut))
        run = folder_at(str(tmp_path / str(cut)))
        saver = checkpointing.Saver(run, 1)
        files = checkpointing.checkpoint_files(first.players)
        assert set(files["generator"]) == set(first.generator.state_dict())
        assert {"generator.first_optimizer", "discriminator_optimizer"} <= set(files)
        saver.save(cut, files, {"dataset": "noise"})
        saver.close()
        second = toy(PHASES)
        resume.restore(checkpointing.list_checkpoints(run.url)[-1], second.players)
        steps(second, range(cut, 9))
        for name, tensors in states(whole).items():
            for key, tensor in tensors.items():
                assert torch.equal(states(second)[name][key], tensor), (cut, name, key)


def test_the_generator_that_is_validated_has_the_averages_of_its_parts():
    method = toy(PHASES)
    assert method.evaluated().second is method.generator.second
    for player in method.fillers:
        player.ema = nn.Sequential(*player.module.children())
    whole = method.evaluated()
    assert whole.first is method.players[0].ema and whole.second is method.players[1].ema
    assert method.generator.first is method.players[0].module
    assert isinstance(whole(torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)), Prediction)


def test_a_random_number_of_a_loss_belongs_to_its_sample():
    image = torch.zeros(4, 3, 2, 2)
    mask = torch.zeros(4, 1, 2, 2)
    whole = Batch(image, mask, range(100, 104), seed=7)
    odd = Batch(image[:2], mask[:2], range(101, 104, 2), seed=7)
    assert torch.equal(odd.uniform("gp"), whole.uniform("gp")[[1, 3]])
    found = whole.uniform("gp").flatten()
    assert found.min() >= 0 and found.max() < 1 and len(set(found.tolist())) == 4
    others = [whole.uniform("local"), whole._replace(seed=8).uniform("gp")]
    assert not any(torch.equal(other, whole.uniform("gp")) for other in others)
    many = Batch(image, mask, range(4000)).uniform("gp")
    assert float(many.mean()) == pytest.approx(0.5, abs=0.02)


def test_a_term_is_averaged_over_the_steps_on_which_it_was_computed(tmp_path):
    engine = SimpleNamespace(is_main=True, means=lambda v: {k: float(t) for k, t in v.items()})
    run = folder_at(str(tmp_path))
    log = StepLog(run, engine, 5)
    for number in range(5):
        losses = {"d/loss": torch.tensor(float(number))}
        losses |= {"g/adv": torch.tensor(7.0)} if number == 4 else {}
        log.add(losses, number + 1, 0.1, 0, flush=False)
    (line,) = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "images_seen": 5, "d/loss": 2.0, "g/adv": 7.0, "lr": 0.1, "skipped": 0
    }  # fmt: skip
