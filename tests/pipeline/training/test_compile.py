"""`parallel.compile=true`: networks compiled in place train as the plain ones do."""

import pytest
import torch

from pipeline.config.schema import TrainConfig
from pipeline.training.loop import step
from tests.support.strategies import engine_of, networks_of

SIDE = 40


def curve(monkeypatch, compiled):
    """Losses of two steps, names of the weights, how often a network was compiled."""
    config = TrainConfig(batch=2, threads="1", precision="fp32")
    config.parallel.compile = compiled
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, SIDE, SIDE, 3), generator=drawn).to(torch.uint8)
    masks = (torch.rand(2, SIDE, SIDE, generator=drawn) < 0.3).to(torch.uint8)
    torch._dynamo.utils.counters.clear()
    with engine_of(config, monkeypatch) as engine:
        networks = networks_of({"method": "msanet"}, config, engine)
        engine.start(networks.players)
        losses = []
        for _ in range(2):
            losses.append(step(networks, engine, images, masks, config))
            assert engine.step(networks.players, 0.9)
        names = list(networks.players[0].weights())
    return losses, names, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_two_steps_of_a_network_compiled_in_place_are_those_of_the_plain_one(monkeypatch):
    """Without the code generator, which takes minutes: what is traced is the same."""
    plain, names, graphs = curve(monkeypatch, compiled=False)
    assert graphs == 0
    with_backend = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: with_backend(m, backend="aot_eager"))
    compiled, same, graphs = curve(monkeypatch, compiled=True)
    assert graphs > 0 and same == names
    for ours, theirs in zip(compiled, plain, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=0)
