"""Out of device memory ends in one line. The device is emulated: it holds so many images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import free_port
from pipeline.training import sync_batchnorm
from pipeline.training.guards import batch_too_large
from pipeline.training.loop import step
from tests.conftest import TINY
from tests.support.strategies import engine_of, networks_of

ROOT = Path(__file__).resolve().parents[3]


def device_of(room):
    """`attempt` on a device with room for that many images, and what was tried on it."""
    tried = []

    def attempt(count):
        tried.append(count)
        if count > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt, tried


def test_the_batch_that_fits_is_found_by_trying_halves():
    attempt, tried = device_of(3)
    message = str(batch_too_large(16, 1, attempt))
    assert tried == [8, 4, 2]
    assert "with 16 images per process" in message and "2 fit: set accumulate=8," in message


def test_existing_accumulation_is_multiplied():
    attempt, _ = device_of(2)
    assert "2 fit: set accumulate=6," in str(batch_too_large(4, 3, attempt))


def test_the_parts_divide_the_batch():
    attempt, tried = device_of(2)
    message = str(batch_too_large(5, 1, attempt))
    assert tried == [2] and "1 fit: set accumulate=5," in message


def test_accumulation_is_not_advised_if_not_one_image_fits():
    attempt, tried = device_of(0)
    message = str(batch_too_large(4, 1, attempt))
    assert tried == [2, 1] and "lower data.crop=" in message and "accumulate" not in message


def test_out_of_memory_outside_a_step_is_one_line_too(small_set, tmp_path):
    """In validation, of a worker as its launcher starts it."""
    code = (
        "import sys, torch, pipeline.training.loop as t, pipeline.cli as cli\n"
        "def full(*_):\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried 20 GiB. GPU 0 has 9 GiB')\n"
        "t.validate = full\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = ["train", *TINY, f"data.url={small_set}", f"run={tmp_path}/run", "max_images=8"]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == os.EX_CONFIG
    assert "(CUDA out of memory. Tried 20 GiB): set accumulate=2," in done.stderr
    assert "Traceback" not in done.stderr


def test_a_training_step_that_does_not_fit_is_tried_smaller_and_explained(monkeypatch):
    """Through the real backward of a real network whose forward holds two images at most."""
    config = TrainConfig(batch=4, threads="1", precision="fp32")
    images, masks = torch.zeros(4, 40, 40, 3, dtype=torch.uint8), torch.ones(4, 40, 40)
    seen = []
    exchanged = []
    monkeypatch.setattr(
        sync_batchnorm.dist, "all_gather", lambda *_: exchanged.append("statistics")
    )

    def holds_two(module, given):
        seen.append((len(given[0]), module.training))
        if len(given[0]) > 2:
            monkeypatch.setattr(sync_batchnorm, "_world_size", lambda: 2)  # the other rank had room
            raise torch.OutOfMemoryError("CUDA out of memory")

    with engine_of(config, monkeypatch) as engine:
        networks = networks_of({"method": "msanet"}, engine)
        engine.start(networks.players)
        network = networks.generator.module
        network.register_forward_pre_hook(holds_two)
        with pytest.raises(ConfigError, match="2 fit: set accumulate=2,"):
            step(networks, engine, images, masks, config)
    assert seen[:2] == [(4, True), (2, False)]  # a trial leaves statistics alone
    assert exchanged == []  # nobody would answer
    assert network.training and all(p.grad is None for p in network.parameters())
