"""Fixtures that several packages share: small real sets, made once a session by the commands."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A shell starts `pytest &` with SIGINT ignored, and every process under it would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A developer's own configuration must not change what the tests see, nor a launcher's variables.
CONFIG = tempfile.TemporaryDirectory(prefix="lacuna-tests-")
os.environ["XDG_CONFIG_HOME"] = CONFIG.name
for name in ("LACUNA_CONF", "RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)


def run_verb(*words, cwd=ROOT, env=None, timeout=600):
    """`python -m pipeline words...` as a user would; the finished process, text captured."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def verb():
    return run_verb


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory):
    """96x96 JPEG crops of three photographs, one a split: 24 train, 6 val, 6 test."""
    from PIL import Image

    from pipeline.data.photographs import photograph

    folder = tmp_path_factory.mktemp("photographs")
    names = {"train": ("astronaut.png", 24), "val": ("coffee.png", 6), "test": ("chelsea.png", 6)}
    for split, (name, count) in names.items():
        (folder / split).mkdir()
        picture = photograph(name).resize((384, 288), Image.Resampling.LANCZOS)
        for i in range(count):
            left, top = (i % 4) * 96, (i // 4 % 3) * 96
            crop = picture.crop((left, top, left + 96, top + 96))
            crop = crop.rotate(180) if i >= 12 else crop
            crop.save(folder / split / f"crop-{i:02d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def small_set(photograph_folder, tmp_path_factory):
    """A sharded set of `photograph_folder`, by `shard`."""
    out = tmp_path_factory.mktemp("sets") / "photographs"
    done = run_verb("shard", f"source={photograph_folder}", f"out={out}", "data.min_side=64")
    assert done.returncode == 0, done.stderr
    return str(out)


# MSA-Net whole, a tenth as wide, on 64x64 crops: a step takes a fraction of a second.
TINY = (
    "experiment=quickstart",
    "model.width=0.1",
    "data.crop=64",
    "batch=8",
    "validate.size=64",
    "validate.pairs=3",
    "validate.samples=1",
    "validate.every_images=0",
    "checkpoint.every_images=80",
    "threads=1",
    "objective.style=25",
    "objective.perceptual=0.001",
    "objective.phases=[{until: null, lr: 1.0e-3}]",
    "tracking.enabled=false",
)


@pytest.fixture(scope="session")
def train(small_set):
    """`train` on `small_set` with the tiny recipe; extra words win."""

    def call(run, *words, env=None):
        keys = {word.partition("=")[0] for word in words}
        kept = [word for word in TINY if word.partition("=")[0] not in keys]
        return run_verb("train", *kept, f"data.url={small_set}", f"run={run}", *words, env=env)

    return call
