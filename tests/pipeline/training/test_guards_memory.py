"""Out of device memory ends in one line with the accumulation to try."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import free_port
from pipeline.training.guards import out_of_memory
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("batch", "accumulate", "ranks", "fix"),
    [
        (32, 1, 2, "16 images .* set accumulate=2,"),
        (32, 4, 1, "8 images .* set accumulate=8,"),
        (30, 2, 1, "15 images .* set accumulate=6,"),  # not 4: each part has equally many images
        (8, 4, 2, "1 images .* lower data.crop="),
    ],
)
def test_the_advice_divides_the_micro_batch(batch, accumulate, ranks, fix):
    config = TrainConfig(batch=batch, accumulate=accumulate)
    error = out_of_memory(torch.OutOfMemoryError("CUDA out of memory"), config, ranks)
    assert re.search(fix, str(error))


@pytest.mark.parametrize("where", ["validate", "method.backward"])
def test_out_of_memory_is_one_line(small_set, tmp_path, where):
    """In validation and in a step, of a worker as its launcher starts it."""
    code = (
        "import sys, torch, pipeline.training.loop as t, pipeline.cli as cli\n"
        "def full(*_):\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried 20 GiB. GPU 0 has 9 GiB')\n"
        f"t.{where} = full\n"
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
