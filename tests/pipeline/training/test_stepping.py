"""A step on a GPU waits for nothing: shown on `meta` tensors, which have no values to wait for."""

import sys
from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode

from models import canny, losses
from models.densenet import DenseNetDiscriminator
from pipeline.config.compose import compose
from pipeline.config.methods import METHODS
from pipeline.config.phases import turn_at
from pipeline.config.schema import TrainConfig
from pipeline.training import method
from pipeline.training.loop import step
from pipeline.training.methods import musical
from pipeline.training.progress import TrainState
from pipeline.training.stepping import Skips, Upload, lowers_scale
from tests.pipeline.training.test_methods import CASES
from tests.support.strategies import engine_of, networks_of

MUSICAL = ["model=musical", "model.ngf=4", "objective=musical_paper"]
STEPS = {"edgeconnect": 3, "glc": 3, "gmcnn": 4, "deepfill": 2}  # until each network has learned


class NoBlockingCopies(TorchFunctionMode):
    """Refuses copies to the device for which the host would wait."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and made.is_meta:
            raise RuntimeError(f"{function} copies from the host, and waits")
        from_host = function is torch.Tensor.to and made.is_meta and not args[0].is_meta
        if from_host and not kwargs.get("non_blocking"):
            raise RuntimeError("a copy from the host without non_blocking=True waits")
        return made


def step_on_meta(name, monkeypatch):
    """Forward, losses, backward, skip rule and EMA of every turn of a method, without any value."""
    words = MUSICAL if name not in CASES else CASES[name].words.split()
    side = 96 if name not in CASES else CASES[name].side
    words = [*words, "weights=random", "threads=1", "batch=2", f"data.crop={side}"]
    words += ["ema=0.9", "clip=1", "objective.optimizer=adamw"]
    config = compose("train", words).config
    # Fused optimizers know no such device; torch has the shapes of their kernels nevertheless.
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    with engine_of(config, monkeypatch) as engine:
        engine.device, engine.on_device = torch.device("meta"), True
        small = partial(DenseNetDiscriminator, growth=4, blocks=(1, 1, 1, 1))
        monkeypatch.setattr(musical, "DenseNetDiscriminator", small)
        monkeypatch.setattr(canny, "ROUNDS", 2)
        with engine.device:
            networks = method.build(config, engine)
        skips = Skips(TrainState(), late=99)
        images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        with NoBlockingCopies():
            for i in range(STEPS.get(name, 1)):
                phases, players = config.objective.phases, config.objective.players
                networks.begin(turn_at(phases, 2 * i, 2, players))
                step(networks, engine, images, images[..., 0], config, 2 * i)
                stepped = engine.step(networks.learning, config.ema)
                skips.add(stepped, lowers_scale(networks.learning, engine.device))
                assert stepped.is_meta
        assert all(p.is_meta for player in networks.players for p in player.module.parameters())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "msanet" else pytest.mark.slow) for n in METHODS]
)
def test_no_method_makes_the_host_wait_within_a_step(name, monkeypatch):
    step_on_meta(name, monkeypatch)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item() and x,
        lambda x: x if x.view(1).nonzero().numel() else x,
        lambda x: x.cpu(),
        lambda x: x if x > 0 else -x,
        lambda x: x * torch.tensor([2.0], device=x.device),
    ],
    ids=["item", "nonzero", "copy to the host", "if", "copy from the host"],
)
def test_what_waits_is_found(wait, monkeypatch):
    usual = losses.l2
    monkeypatch.setattr(losses, "l2", lambda *given: wait(usual(*given)))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta|waits"):
        step_on_meta("msanet", monkeypatch)


def tensors(networks):
    named = {f"{p.name}.{n}": t for p in networks.players for n, t in p.weights().items()}
    for p in networks.players:
        named |= {f"{p.name}.ema.{n}": t for n, t in p.ema.state_dict().items()} if p.ema else {}
        moments = p.moments().items()
        named |= {f"{p.name}.{n}.{k}": t for n, state in moments for k, t in state.items()}
    return {name: tensor.clone() for name, tensor in named.items()}


def test_what_the_device_decides_is_what_the_host_would(monkeypatch):
    """Three steps, the second with a NaN in one gradient of one network, on a CPU both ways."""
    results = []
    for on_device in (False, True):
        config = TrainConfig(batch=2, threads="1", precision="fp32", ema=0.9, clip=0.5)
        with engine_of(config, monkeypatch) as engine:
            engine.on_device = on_device
            networks = networks_of({"method": "musical"}, config, engine)
            for player in networks.players:
                player.optimizer = method.optimizer(config.objective)(player.module.parameters())
            engine.start(networks.players)
            networks.begin(turn_at(config.objective.phases, 0, 2, config.objective.players))
            seen, bias = [tensors(networks)], networks.players[1].module.head.bias
            drawn = torch.Generator().manual_seed(0)
            for i in range(3):
                images = torch.randint(0, 256, (2, 96, 96, 3), generator=drawn).to(torch.uint8)
                poison = bias.register_hook(lambda g: g * float("nan")) if i == 1 else None
                step(networks, engine, images, images[..., 0] % 2, config, 2 * i)
                assert bool(engine.step(networks.players, config.ema)) == (i != 1)
                seen.append(tensors(networks))
                if poison:
                    poison.remove()
        results.append(seen)
        for name, before in seen[1].items():
            assert torch.equal(before, seen[2][name]), name
        changed = [n for n, before in seen[2].items() if not torch.equal(before, seen[3][n])]
        assert len(changed) > len(seen[2]) / 2
    for ours, theirs in zip(*results):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-6, atol=1e-7)
            assert "ema" in name or torch.equal(theirs[name], tensor), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_torch_sees_no_synchronization_in_a_step(monkeypatch):
    config = TrainConfig(batch=2, threads="1", ema=0.9, clip=0.5)
    with engine_of(config, monkeypatch) as engine:
        networks = networks_of({"method": "musical"}, config, engine)
        for player in networks.players:
            player.optimizer = method.optimizer(config.objective)(player.module.parameters())
        engine.start(networks.players)
        networks.begin(turn_at(config.objective.phases, 0, 2, config.objective.players))
        skips, upload = Skips(TrainState(), late=1), Upload(engine.device)
        images = torch.randint(0, 256, (2, 96, 96, 3)).to(torch.uint8)
        try:
            for i in range(4):
                torch.cuda.set_sync_debug_mode("error" if i else "default")  # the first allocates
                step(networks, engine, *upload(images, images[..., 0] % 2), config, 2 * i)
                stepped = engine.step(networks.players, config.ema)
                skips.add(stepped, lowers_scale(networks.players, engine.device))
                skips.read(now=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_step_late_or_at_once_the_same_steps_are_counted():
    known = {
        0: [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)],
        1: [(0, 0), (0, 0), (1, 1), (2, 2), (2, 0)],
    }
    for late, expected in known.items():
        skips = Skips(state := TrainState(metrics={"val/psnr": 1.0}), late)
        for stepped, counts in zip([True, False, False, True, False], expected):
            skips.add(torch.tensor(stepped), torch.tensor(False))
            skips.read(now=False)
            assert (state.skipped, skips.in_a_row) == counts
        assert not skips.read(now=True)
        assert (state.skipped, skips.in_a_row, state.metrics) == (3, 1, {})


def test_a_step_that_only_lowers_fp16s_scale_is_not_counted_as_divergence():
    skips = Skips(state := TrainState(), late=0)
    skips.add(torch.tensor(False), torch.tensor(True))
    assert not skips.read(now=False)
    assert (state.skipped, skips.in_a_row) == (1, 0)
