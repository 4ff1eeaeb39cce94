"""Every strategy trains alike, on two real processes over gloo; ZeRO by DeepSpeed itself."""

import json
import math
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.schema import TrainConfig
from pipeline.runs.checkpoints import latest
from pipeline.training import method
from pipeline.training.engine import Engine
from pipeline.training.preflight import preflight
from tests.support.strategies import PHASED, Ranks, engine_of

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed (pip install -e .[deepspeed])",
)
ZERO = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def ranks():
    """The running `Ranks`, by their number."""
    running = {}
    yield running
    for group in running.values():
        group.close()


@pytest.fixture
def trained(ranks):
    """`trained(out, plan, processes)`; where a test failed its ranks are not used again."""

    def call(out, plan, processes=2):
        group = ranks.pop(processes, None) or Ranks(processes)
        try:
            group.train(out, plan)
        except BaseException:
            group.close()
            raise
        ranks[processes] = group

    return call


def drift(out, a, b):
    """Root of the sum of squared differences of two cases, file by file."""
    a, b = latest(str(out / a)), latest(str(out / b))
    assert a.state["files"].keys() == b.state["files"].keys()
    found = {}
    for name in a.state["files"]:
        ours, theirs = a.read(name), b.read(name)
        assert ours.keys() == theirs.keys() and len(ours) > 8
        squares = ((ours[k] - theirs[k]).double().square().sum() for k in ours)
        found[name] = float(sum(squares)) ** 0.5
    return found


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.dist
@pytest.mark.parametrize("method", ["msanet", "musical"])
def test_zero_equals_ddp_up_to_rounding(trained, method, tmp_path, soak):
    """In fp32: at most three times the drift that a change of 1e-7 in the weights causes."""
    same = {"method": method, "steps": soak.count(50), "accumulate": 2}
    plan = {name: {**same, "strategy": name} for name in ("ddp", *ZERO)}
    plan["nudged"] = {**same, "strategy": "ddp", "nudge": 1e-7}
    trained(tmp_path, plan)
    allowed = drift(tmp_path, "ddp", "nudged")
    files = {"generator", "generator_ema", "generator_optimizer"}
    if method == "musical":
        files |= {"discriminator", "discriminator_optimizer"}
    assert allowed.keys() == files and all(allowed.values())
    for name in ZERO:
        for file, found in drift(tmp_path, "ddp", name).items():
            assert found <= 3 * allowed[file], (name, file)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
def test_bf16_is_the_same_under_every_strategy(trained, tmp_path):
    """Weights stay fp32, so that a change of one part in 2^9 of them is what rounding allows."""
    same = {"method": "msanet", "steps": 6, "precision": "bf16"}
    plan = {name: {**same, "strategy": name} for name in ("ddp", *ZERO)}
    plan["nudged"] = {**same, "strategy": "ddp", "nudge": 2.0**-9}
    plan["fp32"] = {**same, "strategy": "ddp", "precision": "fp32"}
    trained(tmp_path, plan)
    allowed = drift(tmp_path, "ddp", "nudged")
    assert all(drift(tmp_path, "ddp", "fp32").values())
    for name in ZERO:
        for file, found in drift(tmp_path, "ddp", name).items():
            assert found <= allowed[file], (name, file)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    ("method", "steps"), [("msanet", 20), ("musical", 20), *((n, 6) for n in PHASED)]
)
def test_two_ranks_train_all_networks_as_one_does(trained, method, steps, tmp_path):
    """At most three times the drift that a change of 1e-7 in the weights causes."""
    same = {"method": method, "strategy": "ddp", "steps": steps}
    trained(tmp_path, {"one": same, "nudged": {**same, "nudge": 1e-7}}, processes=1)
    trained(tmp_path, {"two": same})
    allowed = drift(tmp_path, "one", "nudged")
    for file, found in drift(tmp_path, "one", "two").items():
        assert 0 < found <= 3 * allowed[file], file


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_accumulation_equals_the_big_batch_without_batch_norm(trained, tmp_path, norm):
    same = {"method": "msanet", "strategy": "ddp", "steps": 20, "norm": norm}
    plan = {"whole": same, "parts": {**same, "accumulate": 4}, "nudged": {**same, "nudge": 1e-7}}
    trained(tmp_path, plan, processes=1)
    allowed = drift(tmp_path, "whole", "nudged")
    for file, found in drift(tmp_path, "whole", "parts").items():
        assert 0 < found <= 3 * allowed[file], file


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
def test_checkpoints_go_from_any_strategy_to_any_other(trained, tmp_path):
    """Two steps under one and two under another equal four; optimisers and averages with them."""
    same = {"method": "musical", "steps": 4, "clip": 0.05}
    plan = {"ddp": {**same, "strategy": "ddp"}}
    plan["nudged"] = {**same, "strategy": "ddp", "nudge": 1e-7}
    for before, after in (("ddp", "zero1"), ("zero2", "zero3"), ("zero3", "ddp")):
        plan[f"half-{before}"] = {**same, "steps": 2, "strategy": before}
        start = {"start": f"half-{before}"}
        plan[f"{before}-{after}"] = {**same, "strategy": after, **start}
    trained(tmp_path, plan)
    allowed = drift(tmp_path, "ddp", "nudged")
    for name in ("ddp-zero1", "zero2-zero3", "zero3-ddp"):
        for file, found in drift(tmp_path, "ddp", name).items():
            assert found <= 3 * allowed[file], (name, file)
    # Moments that were lost, or gradients that were not clipped, would show.
    fresh = {**same, "strategy": "zero1", "clip": None}
    trained(tmp_path, {"unclipped": fresh})
    assert drift(tmp_path, "ddp", "unclipped")["generator_optimizer"] > 0.01
    # One process goes on from two.
    alone = {"one-zero1": {**same, "strategy": "zero1", "start": "half-zero3"}}
    trained(tmp_path, alone, processes=1)
    for file, found in drift(tmp_path, "ddp", "one-zero1").items():
        assert found <= 3 * allowed[file], file


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.dist
def test_a_nan_gradient_on_one_rank_skips_the_step_of_every_optimizer_on_all(trained, tmp_path):
    """The discriminator's, on rank 1, in the second step: neither network steps, and both go on."""
    plan = {}
    for name in ("ddp", *ZERO):
        same = {"method": "musical", "strategy": name, "poison": 1}
        plan |= {f"{name}-{n}": {**same, "steps": n} for n in (1, 2, 3)}
    trained(tmp_path, plan)
    norms = {}
    for name in ("ddp", *ZERO):
        results = json.loads((tmp_path / f"{name}-3.json").read_text())
        assert [step["stepped"] for step in results] == [True, False, True], name
        norms[name] = [step["norms"] for step in results]
        assert norms[name][0] == pytest.approx(norms["ddp"][0], rel=1e-4), name
        assert norms[name][2] == pytest.approx(norms["ddp"][2], rel=1e-2), name
        assert not math.isfinite(norms[name][1]["d/grad_norm"]), name
        still = drift(tmp_path, f"{name}-1", f"{name}-2")
        moved = drift(tmp_path, f"{name}-1", f"{name}-3")
        for file in ("generator_optimizer", "discriminator_optimizer"):
            # weights have moved by nothing, and running statistics by nothing
            assert still[file] == still[file.removesuffix("_optimizer")] == 0
            assert 0 < moved[file] < float("inf"), (name, file)


@pytest.mark.slow
@pytest.mark.dist
def test_a_step_exchanges_each_networks_gradients_once_and_nothing_else(trained, tmp_path):
    """Though the discriminator is called three times in each of two micro-batches."""
    same = {"method": "musical", "strategy": "ddp", "accumulate": 2, "sync_batchnorm": False}
    trained(tmp_path, {"case": {**same, "steps": 3, "wire": True}})
    results = json.loads((tmp_path / "case.json").read_text())
    sent = results[2]["wire"][len(results[1]["wire"]) :]  # before, DDP arranges its buckets
    found = latest(str(tmp_path / "case"))
    weights = [found.read(f"{name}_optimizer") for name in ("generator", "discriminator")]
    bytes_of = [sum(4 * t.numel() for k, t in w.items() if k.endswith("/exp_avg")) for w in weights]
    losses = 4 * len(set(results[2]) - {"stepped", "norms", "wire"})
    expected = [losses, *bytes_of]  # the means of the step before are logged after its record
    assert sent == [["gloo:all_reduce", count] for count in expected]


def test_processes_outside_one_group_are_refused(monkeypatch):
    """As where Accelerate takes no notice of a launcher: each is rank 0 of a run of its own."""
    config = TrainConfig(threads="1", precision="fp32")
    with engine_of(config, monkeypatch) as alone, monkeypatch.context() as results:
        assert (alone.rank, alone.world_size) == (0, 1)
        results.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="would train separate runs: start them"):
            Engine(config)


def test_without_deepspeed_zero_is_refused_before_a_worker_starts(monkeypatch, small_set, tmp_path):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    words = ["experiment=quickstart", f"data.url={small_set}", f"run={tmp_path}/run"]
    config = compose("train", [*words, "parallel=zero1"]).config
    with pytest.raises(ConfigError, match=r"parallel=zero1 needs DeepSpeed, .*\[deepspeed\]"):
        preflight(config, 2)
    assert not (tmp_path / "run").exists()


# Row 65
@pytest.mark.parametrize(
    "left",
    [
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_USE_DYNAMIC": "true"},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_TORCH_DEVICE": "meta"},
        {"ACCELERATE_MIXED_PRECISION": "foo", "FSDP_VERSION": "", "ACCELERATE_USE_FSDP": "maybe"},
        {"OMP_NUM_THREADS": ""},
        {"OMP_NUM_THREADS": "four"},
        {"FORK_LAUNCHED": ""},
    ],
    ids=lambda left: "=".join(next(iter(left.items()))),
)
def test_variables_of_other_launchers_have_no_effect(left, monkeypatch):
    config = TrainConfig(processes="1", precision="fp32", threads="1")
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with engine_of(config, monkeypatch) as engine:
        accelerator = engine.accelerator
        assert accelerator.state.dynamo_plugin.backend.value == "NO"
        assert accelerator.distributed_type.value == "MULTI_CPU"
        assert accelerator.gradient_accumulation_steps == 1
        assert accelerator.parallelism_config is None
        assert accelerator.mixed_precision == "no"
        assert engine.device.type == "cpu" and torch.get_num_threads() == 1
        module = nn.Linear(2, 2)
        assert type(accelerator.prepare_model(module)) is DistributedDataParallel


def test_the_norm_of_each_network_s_gradients_is_that_before_clipping(monkeypatch):
    words = ["model=edgeconnect", "model.width=0.1", "objective=edgeconnect", "weights=random"]
    config = compose("train", [*words, "threads=1", "clip=0.5"]).config
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
        for number, player in enumerate(networks.players):
            for parameter in player.module.parameters():
                parameter.grad = torch.full_like(parameter, number + 1.0)
        assert engine.step(networks.players, 0.0)
        names = ("g.edges", "g.image", "d.edges", "d.image")
        assert list(engine.norms) == [f"{name}/grad_norm" for name in names]
        for number, (player, norm) in enumerate(zip(networks.players, engine.norms.values())):
            assert norm.item() == pytest.approx((number + 1) * player.size**0.5, rel=1e-5)
