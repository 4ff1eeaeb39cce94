"""A step's arithmetic, against the papers' networks counted by hand and one counted on paper."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import Prediction
from pipeline.config.compose import compose
from pipeline.training import flops, method, sync_batchnorm
from pipeline.training.forecast import forecast
from pipeline.training.network import TrainableNetwork
from pipeline.training.progress import Meter
from shards import decode
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream
from tests.support.strategies import engine_of


def config_of(experiment, *words):
    given = [f"experiment={experiment}", "threads=1", "precision=fp32", *words]
    return compose("train", given).config


def test_msa_net_costs_what_its_layer_table_adds_up_to(monkeypatch):
    """43 GFLOP forward at 256 × 256; the internal targets are a forward of their own: 4 × 43."""
    config = config_of("msanet/table6/places2", "data.crop=64")
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
        found = flops.flop_per_image(networks, engine, config)
    assert 16 * found == pytest.approx(4 * 43e9, rel=0.03)


class Twice(nn.Module):
    """Two convolutions of 3 × 3, 4 → 8 → 3."""

    multiple, smallest = 1, 1

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 3, 3, padding=1, bias=False)

    def forward(self, erased, mask):
        return Prediction(self.b(self.a(torch.cat([erased, mask], 1))), {})


def test_a_network_counted_on_paper(monkeypatch):
    config = config_of("quickstart", "data.crop=16")
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
        module = Twice()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        optimizer = networks.players[0].optimizer
        networks.players = [TrainableNetwork("generator", module, module, optimizer)]
        found = flops.flop_per_image(networks, engine, config)
    first, second = 2 * 9 * 4 * 8 * 16 * 16, 2 * 9 * 8 * 3 * 16 * 16
    assert found == 2 * first + 3 * second  # the first needs no gradient of its input
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_a_fourier_transform_costs_5_n_log_n_and_of_real_numbers_half_of_it():
    image = torch.rand(3, 2, 16, 8)
    with FlopCounterMode(display=False) as counter:
        torch.fft.irfft2(torch.fft.rfft2(image), s=(16, 8))
    assert counter.get_total_flops() == 2 * 3 * 2 * 2.5 * 128 * 7
    with FlopCounterMode(display=False) as counter:
        torch.fft.fft2(image.to(torch.complex64))
    assert counter.get_total_flops() == 3 * 2 * 5 * 128 * 7


def test_counting_leaves_networks_and_random_numbers_as_they_were(monkeypatch):
    config = config_of("quickstart")
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
        weights = {k: v.clone() for k, v in networks.players[0].module.state_dict().items()}
        random = torch.get_rng_state()
        flops.flop_per_image(networks, engine, config)
        assert torch.equal(random, torch.get_rng_state())
        for name, value in networks.players[0].module.state_dict().items():
            assert torch.equal(value, weights[name]), name


def test_counting_touches_no_other_rank_and_no_other_device(monkeypatch):
    """As on a node of two GPUs, before anything watches for a rank that hangs."""
    exchanged = []
    monkeypatch.setattr(sync_batchnorm, "_world_size", lambda: 2)
    monkeypatch.setattr(
        sync_batchnorm.dist, "all_gather", lambda *_: exchanged.append("all_gather")
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: exchanged.append(device))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    config = config_of("msanet/table6/celeba", "model.width=0.125", "data.crop=64")
    with engine_of(config, monkeypatch) as engine:
        flops.flop_per_image(method.build(config, engine), engine, config)
    assert exchanged == []


def test_a_device_is_known_by_its_name_and_only_where_tensor_cores_count():
    assert flops.peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert flops.peak("NVIDIA H100 PCIe", "fp16") == 756e12
    assert flops.peak("NVIDIA A100-SXM4-40GB", "bf16") == 312e12
    assert flops.peak("NVIDIA L4", "bf16") == 121e12
    assert flops.peak("NVIDIA L40S", "bf16") == 362e12
    assert flops.peak("Tesla T4", "fp16") == 65e12
    assert flops.peak("NVIDIA H100 80GB HBM3", "fp32") is None
    assert flops.peak("AMD Instinct MI300X", "bf16") is None


def test_mfu_is_the_rate_times_the_ideal_seconds_per_image():
    meter = Meter(0, 100, False, image_seconds=1e-3)
    for _ in range(8):
        meter.step(10, 0.02, 0.0, {})  # 500 pictures a second, once warm
    assert meter.values()["perf/mfu"] == pytest.approx(0.5)
    unknown = Meter(0, 100, False)
    unknown.step(10, 0.02, 0.0, {})
    found = unknown.values()
    assert found["perf/step_ms_min"] == 20 and "perf/mfu" not in found


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("quickstart", ["data.crop=256"]),
        ("quickstart", ["data.crop=192", "model.fe=[8,8,8,8]", "model.iru=[8,8,8,8,8]"]),
        ("compare/lama", ["model.width=0.1", "model.blocks=1", "objective.d_width=0.1"]),
        pytest.param("compare/deepfill", ["model.width=0.1"], marks=pytest.mark.slow),
        pytest.param("musical/paris", ["data.crop=192"], marks=pytest.mark.slow),
    ],
)
def test_the_cost_of_a_large_image_is_told_by_small_ones(experiment, words, monkeypatch):
    config = config_of(experiment, *words, "weights=random")
    with engine_of(config, monkeypatch) as engine:
        exact = flops.flop_per_image(method.build(config, engine), engine, config)
    assert flops.estimate(config) == pytest.approx(exact, rel=0.01)


def test_a_forecast_multiplies_out(small_set, monkeypatch):
    monkeypatch.setattr(flops, "estimate", lambda config: 172e9)
    words = [f"data.url={small_set}", "batch=16"]
    lines = forecast(config_of("quickstart", *words), 8, 9_600_000)
    count = open_manifest(str(small_set)).splits["train"].samples
    assert lines[0].startswith("9,600,000 images = 600,000 steps of batch=16 = ")
    assert lines[0].endswith(f"{9_600_000 / count:.1f} epochs of {count:,} images")
    assert lines[1] == "172 GFLOP per image at 96x96, 1.7e+18 FLOP in all"
    # 1.6512e18 FLOP / (0.3 x 312e12 FLOP/s x 8) / 3600 s = 0.61 h on A100; 989e12: 0.19 h
    assert "hours on 8 devices at an assumed 30% of the bf16 peak" in lines[2]
    assert "A100: 0.6; H100 SXM, H200: 0.2;" in lines[2]


def test_a_forecast_counts_the_requests_of_an_epoch(small_set, monkeypatch):
    """Against the blocks that a reader of the whole set asks for, one request each."""
    asked = set()
    manifest = open_manifest(str(small_set))
    count = manifest.splits["train"].samples
    stream = Stream(manifest, "train", batch=1, seed=0, crop=decode.Crop(64), threads=0,
                    masks=MaskPolicy("center"))  # fmt: skip
    expect = stream._maker.reader.expect

    def counted(window, uses):
        asked.update((piece.shard, piece.row) for piece in window.pieces)
        return expect(window, uses)

    monkeypatch.setattr(stream._maker.reader, "expect", counted)
    for _ in range(count):
        next(stream)
    monkeypatch.setattr(flops, "estimate", lambda config: 1e9)
    lines = forecast(config_of("quickstart", f"data.url={small_set}"), 1, 100)
    assert lines[3].endswith(f" in {len(asked):,} GETs")
