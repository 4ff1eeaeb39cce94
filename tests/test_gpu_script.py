"""`make gpu` runs to its end without a GPU too, in its small form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def report(out, **environment):
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={out}"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )
    return done, json.loads((out / "gpu.json").read_text())


@pytest.mark.slow
def test_every_part_that_a_cpu_can_do_is_done_and_the_others_are_named(tmp_path):
    done, found = report(tmp_path)
    assert done.returncode == 0 and not found["failed"], found["failed"]
    assert found["parts"]["losses"]["steps"] == 30
    assert found["parts"]["resume"]["bit-equal"] and found["parts"]["bf16"]["difference"] > 0
    assert len(found["parts"]["outputs"]["largest difference"]) == 10
    assert found["parts"]["steps"]["musical eager"]["images/s"] > 0
    assert {"smoke msanet", "bench attention", "roofline"} <= found["parts"].keys()
    assert "bench train" in found["not reached"] and "not reached: bench train" in done.stdout
    table = (tmp_path / "figures.md").read_text()
    assert table.startswith(f"Measured on {found['device']}") and "msanet eager" in table


def test_without_time_all_parts_are_named_and_no_figure_is_written(tmp_path):
    done, found = report(tmp_path, LIMIT_S="0")
    assert done.returncode == 0 and not found["parts"]
    assert {"data", "losses", "bench attention"} <= found["not reached"].keys()
    assert not (tmp_path / "figures.md").exists()
