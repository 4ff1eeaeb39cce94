"""fp16's loss scaling, emulated on the CPU: a scaler for each optimiser, none shared.

A CPU run with fp16 is refused; here networks compute in fp32 while scalers do all that they do.
"""

import contextlib

import pytest
import torch

from pipeline.config.schema import TrainConfig
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.training import checkpointing, resume
from pipeline.training.loop import step
from pipeline.training.stepping import lowers_scale
from tests.support.strategies import engine_of, networks_of

SIDE = 96


@contextlib.contextmanager
def half(monkeypatch, scaled=True, accumulate=1):
    config = TrainConfig(batch=4, threads="1", precision="fp32", accumulate=accumulate)
    with engine_of(config, monkeypatch) as engine:
        engine.precision = "fp16" if scaled else "fp32"
        networks = networks_of({"method": "musical"}, config, engine)
        engine.start(networks.players)
        yield config, engine, networks


def batch(number):
    drawn = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (4, SIDE, SIDE, 3), generator=drawn).to(torch.uint8)
    return images, (torch.rand(4, SIDE, SIDE, generator=drawn) < 0.2).to(torch.uint8)


def test_scaled_and_accumulated_gradients_give_the_unscaled_weights(monkeypatch):
    """One scaler for both would have unscaled the generator before its last micro-batch."""
    found = []
    for scaled in (False, True):
        with half(monkeypatch, scaled, accumulate=2) as (config, engine, networks):
            for number in range(2):
                step(networks, engine, *batch(number), config)
                assert engine.step(networks.players, 0.0)
            found.append(checkpointing.checkpoint_files(networks.players))
    unscaled, scaled = found
    for name in ("generator", "discriminator"):
        for key, tensor in unscaled[name].items():
            torch.testing.assert_close(scaled[name][key], tensor, rtol=1e-4, atol=1e-6)


def test_an_overflow_in_one_network_halves_its_scale_alone_and_steps_neither(monkeypatch):
    with half(monkeypatch) as (config, engine, networks):
        before = checkpointing.checkpoint_files(networks.players)
        before = {key: tensor.clone() for key, tensor in before["generator"].items()}
        bias = networks.players[1].module.head.bias
        handle = bias.register_hook(lambda gradient: gradient * float("inf"))
        step(networks, engine, *batch(0), config)
        assert not engine.step(networks.players, 0.0)
        handle.remove()
        scales = [player.scaler.get_scale() for player in networks.players]
        assert scales == [65536.0, 32768.0]
        after = networks.players[0].module.state_dict()
        for name, _ in networks.players[0].module.named_parameters():
            assert torch.equal(after[name], before[name])
        step(networks, engine, *batch(0), config)
        assert engine.step(networks.players, 0.0)


def test_a_scale_may_fall_to_one_before_an_overflow_counts_as_divergence(monkeypatch):
    with half(monkeypatch) as (_, engine, networks):
        bias = networks.players[1].module.head.bias
        skipped = 0
        while lowers_scale(networks.players, engine.device):
            for player in networks.players:
                player.scaler.scale(torch.ones(1))
                for parameter in player.module.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            bias.grad.fill_(float("nan"))
            assert not engine.step(networks.players, 0.0)
            skipped += 1
    assert 2.0**16 * 0.5**skipped == 0.5
    with half(monkeypatch, scaled=False) as (_, engine, networks):
        assert not lowers_scale(networks.players, engine.device)


def test_a_non_finite_forward_pass_leaves_running_statistics_unchanged(monkeypatch):
    """They are no gradient, and a step that is skipped would keep them, and hand them on."""
    config = TrainConfig(batch=4, threads="1", precision="fp32", ema=0.5)
    with engine_of(config, monkeypatch) as engine:
        networks = networks_of({"method": "musical"}, config, engine)
        engine.start(networks.players)
        step(networks, engine, *batch(0), config)
        assert engine.step(networks.players, config.ema)
        before = [
            {name: tensor.clone() for name, tensor in network.state_dict().items()}
            for player in networks.players
            for network in player.networks.values()
        ]
        spoilt = networks.players[0].module.register_forward_pre_hook(
            lambda _, given: (given[0] * float("inf"), *given[1:])
        )
        step(networks, engine, *batch(1), config)
        spoilt.remove()
        assert not engine.step(networks.players, config.ema)
        after = [n.state_dict() for t in networks.players for n in t.networks.values()]
        for ours, theirs in zip(after, before, strict=True):
            for name, tensor in ours.items():
                assert torch.equal(tensor, theirs[name]), name
        step(networks, engine, *batch(2), config)
        assert engine.step(networks.players, config.ema)
        for tensor in networks.evaluated().state_dict().values():
            assert torch.isfinite(tensor).all()


def test_scales_are_in_the_checkpoint(monkeypatch, tmp_path):
    run = folder_at(str(tmp_path / "run"))
    with half(monkeypatch) as (config, engine, networks):
        scaler = networks.players[1].scaler
        scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
        step(networks, engine, *batch(0), config)
        assert engine.step(networks.players, 0.0)
        saver = checkpointing.Saver(run, 1)
        saver.save(4, checkpointing.checkpoint_files(networks.players), {})
        saver.close()
        expected = [player.scaler.state_dict() for player in networks.players]
    with half(monkeypatch) as (_, _, networks):
        resume.restore(checkpoints.latest(run.url), networks.players)
        assert [t.scaler.state_dict() for t in networks.players] == expected
        assert expected[1]["scale"] == pytest.approx(1024) and expected[0]["_growth_tracker"] == 1
