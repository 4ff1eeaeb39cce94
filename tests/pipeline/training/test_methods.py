"""Every method trains, phase by phase: who learns, who rests, and how it resumes."""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load, save
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.compose import compose
from pipeline.config.methods import METHODS
from pipeline.config.phases import turn_at
from pipeline.runs.checkpoints import Checkpoint
from pipeline.training import flops, method
from pipeline.training.checkpointing import checkpoint_files
from pipeline.training.loop import step
from pipeline.training.resume import restore
from tests.support.strategies import engine_of

BATCH = 2
G, D = {"generator"}, {"discriminator"}
JUDGED = ("objective.d_width=0.1",)


class Case(NamedTuple):
    """words: of the command line, with phases of some batches of `BATCH` images each.

    learning: the players that learn, batch by batch. boundary: the batch that opens a later phase.
    frozen: where norms keep their statistics from the boundary on.
    """

    words: str
    side: int
    learning: list[set[str]]
    boundary: int
    frozen: str = "nothing"


CASES = {
    "msanet": Case(
        "model=msanet model.width=0.1 objective=msanet objective.phases=[{until:4},{lr:1e-4}]",
        64,
        [G] * 4,
        2,
    ),
    "deepfill": Case(
        "model=deepfill model.width=0.1 objective=deepfill objective.phases=["
        "{until:4,lr:1e-3,every:{generator:2}},{lr:1e-3,every:{generator:3}}]",
        96,
        [D, G | D, D, D, G | D],
        2,
    ),
    "edgeconnect": Case(
        "model=edgeconnect model.width=0.1 objective=edgeconnect objective.phases=["
        "{until:2,rates:{generator.edges:1e-3,discriminator.edges:1e-4}},"
        "{until:4,rates:{generator.image:1e-3,discriminator.image:1e-4},without:[predicted]},"
        "{rates:{generator.image:1e-3,discriminator.image:1e-4}}]",
        64,
        [
            {"generator.edges", "discriminator.edges"},
            {"generator.image", "discriminator.image"},
            {"generator.image", "discriminator.image"},
        ],
        1,
    ),
    "pconv": Case(
        "model=pconv model.width=0.1 model.levels=5 objective=pconv "
        "objective.phases=[{until:4,lr:1e-3},{lr:1e-3,frozen:[generator.encoder]}]",
        64,
        [G] * 4,
        2,
        "generator.encoder",
    ),
    "glc": Case(
        "model=glc model.width=0.1 model.dilations=[2] objective=glc objective.d_width=0.1 "
        "objective.phases=[{until:2,rates:{generator:1},without:[adv]},"
        "{until:4,rates:{discriminator:1}},{rates:{generator:1,discriminator:1}}]",
        64,
        [G, D, G | D, G | D],
        1,
    ),
    "gmcnn": Case(
        "model=gmcnn model.width=0.1 model.dilations=[1] objective=gmcnn objective.d_width=0.1 "
        "objective.phases=[{until:4,rates:{generator:1e-3},without:[id_mrf,adv]},"
        "{rates:{generator:1e-4,discriminator:1e-4},every:{generator:2}}]",
        64,
        [G, G, D, G | D, D, G | D],
        3,
    ),
    "shiftnet": Case(
        "model=shiftnet model.width=0.1 model.levels=4 objective=shiftnet objective.d_width=0.1 "
        "objective.phases=[{until:4,lr:1e-3},{lr:1e-4}]",
        64,
        [G | D] * 4,
        2,
    ),
    "lama": Case(
        "model=lama model.width=0.1 model.blocks=1 objective=lama objective.d_width=0.1 "
        "objective.phases=[{until:4,lr:1e-3},{lr:1e-4}]",
        64,
        [G | D] * 4,
        2,
    ),
    "context_encoder": Case(
        "model=context_encoder model.width=0.1 model.levels=4 objective=context_encoder "
        "objective.d_levels=4 objective.d_width=0.1 objective.phases=[{until:4},{lr:1e-4}]",
        64,
        [G | D] * 4,
        2,
    ),
}


class Run:
    """A method over noise, the same for each batch in every run."""

    def __init__(self, case, engine, config):
        self.engine, self.config, self.side = engine, config, case.side
        self.networks = method.build(config, engine)

    def step(self, number):
        drawn = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (BATCH, self.side, self.side, 3), generator=drawn)
        masks = torch.zeros(BATCH, self.side, self.side, dtype=torch.uint8)
        for mask, first in zip(masks, torch.randint(8, self.side // 2, (BATCH,), generator=drawn)):
            mask[first : first + self.side // 3, 8 : self.side // 2] = 1
        for player in self.networks.players:  # as validation leaves them
            player.module.eval().train()
        objective = self.config.objective
        self.networks.begin(turn_at(objective.phases, number * BATCH, BATCH, objective.players))
        images = images.to(torch.uint8)
        terms = step(self.networks, self.engine, images, masks, self.config, number * BATCH)
        assert self.engine.step(self.networks.learning, 0.9)
        return {name: value.item() for name, value in terms.items()}

    def state(self):
        return {
            f"{player.name}.{name}": tensor.clone()
            for player in self.networks.players
            for name, tensor in player.module.state_dict().items()
        }


@pytest.fixture(params=CASES)
def opened(request, monkeypatch):
    """The case, and what builds runs of it."""
    case = CASES[request.param]
    precision = "bf16" if "bf16" in request.node.name else "fp32"
    shared = f"weights=random threads=1 precision={precision} batch={BATCH} ema=0.9"
    config = compose("train", [*case.words.split(), *shared.split(), f"data.crop={case.side}"])
    with engine_of(config.config, monkeypatch) as engine:
        yield case, lambda: Run(case, engine, config.config)


def of(key, names):
    """Whether a tensor belongs to one of these players or modules."""
    return any(key.startswith(f"{name}.") for name in names)


def test_exactly_the_players_of_a_batch_learn(opened):
    """Others keep every weight and buffer; frozen norms keep their statistics."""
    case, build = opened
    run = build()
    names = {player.name for player in run.networks.players}
    assert names == set(run.config.objective.players)
    for number, learning in enumerate(case.learning):
        before, terms, after = run.state(), run.step(number), run.state()
        assert {player.name for player in run.networks.learning} == learning
        assert terms and all(torch.tensor(list(terms.values())).isfinite())
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert all(after[key].isfinite().all() for key in changed)
        assert {name for name in names if any(of(key, [name]) for key in changed)} == learning
        statistics = {key for key in before if key.endswith("running_mean") and of(key, learning)}
        frozen = {key for key in statistics if number >= case.boundary and of(key, [case.frozen])}
        assert statistics - frozen == {key for key in statistics if key in changed}
        assert bool(frozen) == (number >= case.boundary and case.frozen != "nothing")


def test_a_run_resumed_at_a_phase_s_boundary_equals_the_uninterrupted_one_bit_for_bit(opened):
    case, build = opened
    whole = build()
    for number in range(len(case.learning)):
        if number == case.boundary:
            files = {
                file: save({key: tensor.contiguous() for key, tensor in tensors.items()})
                for file, tensors in checkpoint_files(whole.networks.players).items()
            }
        whole.step(number)
    resumed = build()
    resumed.step(100)  # other weights and buffers than the seed's
    for player in resumed.networks.players:
        player.optimizer.state.clear()
    checkpoint = Checkpoint("memory://run", {"files": files})
    restore(checkpoint, resumed.networks.players, lambda name: load(files[name]))
    for number in range(case.boundary, len(case.learning)):
        resumed.step(number)
    ours, theirs = (checkpoint_files(run.networks.players) for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    for name, tensors in theirs.items():
        assert ours[name].keys() == tensors.keys()
        assert all(torch.equal(ours[name][key], tensor) for key, tensor in tensors.items()), name


def test_steps_in_bf16_are_finite_and_weights_stay_in_fp32(opened):
    case, build = opened
    run = build()
    assert run.engine.precision == "bf16"
    for number in (0, case.boundary):
        assert all(torch.tensor(list(run.step(number).values())).isfinite())
    tensors = [t for t in run.state().values() if t.is_floating_point()]
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors)


def test_the_flop_of_every_turn_can_be_counted(opened):
    """Backward costs twice the forward, but for the first layer; what rests costs less."""
    case, build = opened
    run = build()
    objective, generator = run.config.objective, run.networks.generator
    image, mask = torch.zeros(1, 3, case.side, case.side), torch.zeros(1, 1, case.side, case.side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator.eval()(image, mask)
    forward = counter.get_total_flops()
    for number, learning in enumerate(case.learning):
        turn = turn_at(objective.phases, number * BATCH, BATCH, objective.players)
        found = flops.flop_of(run.networks, run.engine, turn, case.side)
        assert found > (2.5 if "generator" in learning else 1) * forward


def test_every_method_is_among_the_cases():
    assert set(METHODS) - {"musical"} == set(CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pconv", ("model.levels=5", "data.crop=64", "validate.size=64")),
        ("edgeconnect", ("data.crop=64", "validate.size=64")),
        ("deepfill", ("data.crop=96", "validate.size=96")),
        ("glc", ("model.dilations=[2]", *JUDGED, "data.crop=64", "validate.size=64")),
        ("gmcnn", ("model.dilations=[1]", *JUDGED, "data.crop=64", "validate.size=64")),
        ("lama", ("model.blocks=1", *JUDGED, "data.crop=64", "validate.size=64")),
        ("shiftnet", ("model.levels=5", *JUDGED, "data.crop=64", "validate.size=64")),
        (
            "context_encoder",
            ("model.levels=4", "objective.d_levels=4", *JUDGED, "data.crop=64", "validate.size=64"),
        ),
    ],
)
def test_its_recipe_is_trained_resumed_and_exported_through_all_phases(
    name, words, verb, small_set, tmp_path
):
    recipe = (f"experiment=compare/{name}", "masks.border=0.25", "data.resize_short=96")
    small = ("model.width=0.1", "batch=2", "validate.pairs=2", "weights=random", "processes=1")
    here = (f"data.url={small_set}", f"run={tmp_path / 'run'}", "threads=1")
    done = verb("train", *recipe, *small, *words, *here, "smoke=true", "--json", process=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["smoke"] == "passed" and report["projected_hours"] > 1
