"""What `train` leaves in MLflow, on two nodes with one process each; read from its tables."""

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline.config.methods.msanet import MsanetObjective
from pipeline.config.schema import TrainConfig
from pipeline.runs.checkpoints import build_generator
from pipeline.runs.folder import RunFolder
from pipeline.tracking.tracker import NullTracker
from pipeline.training.run_log import SHEET, headline, save_sheet
from shards import objects
from tests.conftest import TINY
from tests.support.objectives import method_of
from tests.support.records import Database, logged_steps, until

ROOT = Path(__file__).resolve().parents[3]
RECIPE = [word for word in TINY if not word.startswith(("tracking.", "validate.every"))]
RECIPE.append("validate.every_images=32")
pytestmark = [pytest.mark.slow, pytest.mark.dist]


def launch(small_set, root, *words, nodes=1, env=None):
    """A launcher for each node; they share the run's disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["train", *RECIPE, f"data.url={small_set}", f"run={root}/run", *words]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "MLFLOW_"))}
    clean |= {"OMP_NUM_THREADS": "1", "USER": "ann", "LOGNAME": "ann", **(env or {})}
    place = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "PET_NNODES": str(nodes)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words],
            cwd=ROOT,
            env={**clean, **place, "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(nodes)
    ]


def ended(launchers):
    output = [each.communicate(timeout=300)[1] for each in launchers]
    return [each.returncode for each in launchers], output


@pytest.fixture(scope="module")
def trained(small_set, tmp_path_factory):
    """64 images on two nodes, validated and saved at 32 and 64; the folder of runs."""
    root = tmp_path_factory.mktemp("runs")
    words = ("max_images=64", "checkpoint.every_images=32")
    launchers = launch(small_set, root, *words, nodes=2, env={"MY_TOKEN": "planted-secret"})
    statuses, output = ended(launchers)
    assert statuses == [0, 0], output
    return root


@pytest.fixture(scope="module")
def database(trained):
    return Database(trained / "mlflow.db")


def test_two_nodes_make_one_run_that_finished(trained, database):
    ((run, status),) = database.runs("run")
    assert status == "FINISHED"
    assert json.loads((trained / "run" / "run.json").read_text())["mlflow_run_id"] == run
    assert database.rows("select name from experiments where name like 'ann/%'") == [
        ("ann/quickstart",)
    ]


def test_every_line_of_the_runs_own_log_is_in_mlflow(trained, database):
    assert database.steps("run", "g/l2") == logged_steps(trained / "run")
    last = json.loads((trained / "run" / "steps.jsonl").read_text().splitlines()[-1])
    logged = database.metrics("run")
    for name, value in last.items():
        if name.startswith("g/"):
            assert logged[name] == pytest.approx(value)
    assert logged["perf/images_per_s"] > 0 and logged["perf/step_ms_p50"] > 0
    for name in ("perf/images_per_s", "perf/images_per_s_train"):  # two nodes, one process each
        assert logged[f"{name}_process"] == pytest.approx(logged[name] / 2)
    assert database.steps("run", "val/psnr") == [32, 64]
    points = database.rows("select value from metrics where key = 'val/psnr'")
    assert logged["best/psnr"] == max(value for (value,) in points)


def test_every_node_is_sampled_and_only_rank_0_sends(database):
    for node in (0, 1):
        assert 0 < database.metrics("run")[f"system/{node}/memory_percent"] < 100


def test_each_validation_leaves_a_contact_sheet(trained, database):
    assert database.images("run") == {SHEET: [32, 64]}
    newest = (database.artifacts("run") / "samples.png").read_bytes()
    assert newest == (trained / "run" / "samples" / f"{64:012d}.png").read_bytes()
    assert len(database.params("run")) < 25, "what differs from the recipe, and a handful more"


def test_a_sheet_cut_by_a_full_disk_is_removed_and_the_next_one_written(tmp_path):
    run = RunFolder(str(tmp_path), tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(objects.Unavailable, match="free some space"):
            save_sheet(run, NullTracker(), noise, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    save_sheet(run, NullTracker(), noise, 16)
    (kept,) = (tmp_path / "samples").iterdir()
    assert kept.name == "000000000016.png" and (np.asarray(Image.open(kept)) == noise).all()


@pytest.mark.parametrize(
    ("norm", "parts", "synchronised", "output"),
    [("batch", 4, True, "BatchNorm sees 4 images at a time (accumulate=4)"),
     ("batch", 4, False, "BatchNorm sees 2 images at a time (accumulate=4)"),
     ("batch", 1, True, None), ("instance", 4, True, None)],
)  # fmt: skip
def test_the_headline_says_over_how_many_images_batchnorm_computes_statistics(
    norm, parts, synchronised, output
):
    network = build_generator({"name": "msanet", "width": 0.1, "norm": norm})
    networks = method_of(MsanetObjective(), network)
    engine = SimpleNamespace(precision="fp32", device=torch.device("cpu"), world_size=2)
    config = TrainConfig(batch=16, accumulate=parts)
    config.parallel.sync_batchnorm = synchronised
    line = headline(config, RunFolder("runs/a", Path("runs/a")), engine, 8, networks)
    assert line.startswith("resuming runs/a at 8 of 1000000 images: msanet ")
    assert line.endswith(output or "threads each")


def test_the_record_names_code_data_and_checkpoint_by_hash(trained, database, small_set):
    tags = database.tags("run")
    checkpoint = Path(tags["checkpoint.url"])
    assert checkpoint == trained / "run" / "checkpoints" / f"{64:012d}"
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
              for p in checkpoint.glob("*.safetensors")}  # fmt: skip
    assert json.loads(tags["checkpoint.sha256"]) == hashes
    lock = hashlib.sha256((ROOT / "constraints.txt").read_bytes()).hexdigest()
    assert tags["lock.sha256"] == lock
    manifest = hashlib.sha256(Path(small_set, "manifest.json").read_bytes()).hexdigest()
    assert database.rows("select digest from datasets") == [(manifest[:32],)]
    kept = (database.artifacts("run") / "config.yaml").read_bytes()
    assert kept == (trained / "run" / "config.yaml").read_bytes()
    assert database.params("run")["batch"] == "8"
    everything = b"".join(p.read_bytes() for p in trained.rglob("*") if p.is_file())
    assert b"planted-secret" not in everything


def test_a_killed_rank_0_has_failed_and_the_same_run_goes_on(trained, database, small_set):
    ((run, _),) = database.runs("run")
    (launcher,) = launch(small_set, trained, "max_images=800")
    until(lambda: launcher.poll() is not None or max(database.steps("run", "g/l2")) > 64, 100)
    assert launcher.poll() is None, launcher.stderr.read()
    assert database.runs("run") == [(run, "RUNNING")]
    (rank_0,) = psutil.Process(launcher.pid).children()
    rank_0.send_signal(signal.SIGKILL)
    statuses, _ = ended([launcher])

    assert statuses == [1]
    assert database.runs("run") == [(run, "FAILED")]
    assert "rank 0" in (why := database.tags("run")["job.error"]) and "SIGKILL" in why

    seen = logged_steps(trained / "run")[-1]
    statuses, output = ended(launch(small_set, trained, f"max_images={seen + 16}"))
    assert statuses == [0], output
    assert database.runs("run") == [(run, "FINISHED")]
    assert set(logged_steps(trained / "run")) <= set(database.steps("run", "g/l2"))
    assert "job.error" not in database.tags("run"), "that was an earlier attempt's"
