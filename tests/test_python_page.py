"""The code of docs/python.md runs, and what it imports has no side effects."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from shards.writer import write_set
from tests.support.sets import samples
from tests.support.trained import finished_run

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
WATCHED = """
import logging, os, signal, sys, threading
THEIRS = "LD_LIBRARY_PATH", "TORCHINDUCTOR"  # set by OpenCV and torch
def state():
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    handlers += logging.root.handlers
    ours = {{k: v for k, v in os.environ.items() if not k.startswith(THEIRS)}}
    return ours, os.getcwd(), handlers, threading.active_count()
before = state()
{imports}
after = state()
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
"""


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs" / "quickstart"
    finished_run(place / "run")
    write_set(str(place / "shards"), "toy", "images", {"test": samples(3)}, options={}, per_shard=8)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 112, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "coffee.png")
    hole = np.zeros((96, 112), np.uint8)
    hole[30:60, 40:80] = 255
    Image.fromarray(hole).save(place / "coffee_mask.png")
    names = {}
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(block, names)
    filled = names["filled"]
    assert filled.shape == pixels.shape and (filled[hole == 0] == pixels[hole == 0]).all()
    assert (filled[hole > 0] != pixels[hole > 0]).any()
    *shapes, score = capsys.readouterr().out.splitlines()
    assert shapes == [f"{key} (40, 40, 3)" for key in range(3)]
    mse = ((filled.astype(float) - pixels) ** 2).mean()
    assert score.startswith(f"{10 * np.log10(255**2 / mse):.2f} dB, SSIM 0.")


def test_what_the_page_imports_changes_nothing(tmp_path):
    lines = [line for block in BLOCKS for line in block.splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    dotted = set(re.findall(r"`((?:pipeline|shards)\.[\w.]+)\.\w+`", TEXT))
    imports += [f"import {name}" for name in sorted(dotted)]
    assert len(imports) >= 7
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.format(imports="\n".join(imports))],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
