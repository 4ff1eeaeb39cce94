"""Out of device memory ends in one line with the accumulation to try."""

import re

import pytest
import torch

from pipeline.config.schema import TrainConfig
from pipeline.training.guards import out_of_memory


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
def test_out_of_memory_is_one_line(train, tmp_path, monkeypatch, where):
    """In validation and in a step, of a worker as its launcher starts it."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 20 GiB. GPU 0 has 9 GiB")

    monkeypatch.setattr(f"pipeline.training.loop.{where}", full)
    done = train(tmp_path / "run", "max_images=8")
    assert done.returncode == 2
    assert "(CUDA out of memory. Tried 20 GiB): set accumulate=2," in done.stderr
    assert "Traceback" not in done.stderr
