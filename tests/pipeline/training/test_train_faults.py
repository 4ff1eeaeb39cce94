"""A disk that fills and a bucket that goes away while a run trains: its state is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from models.vgg import VGG16Features
from pipeline.runs.checkpoints import images_saved, is_whole, list_checkpoints
from shards import store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
HALF, WHOLE = 80, 160

# A disk of its own, of 64 MB; between the two commands all but half a megabyte of it is taken.
FULL_DISK = """
mount -t tmpfs -o size=64m none "$1" && shift || exit 9
"$@" max_images=80 || exit 8
free=$(df --output=avail -k "$RUN" | tail -n 1)
fallocate -l $((free - 512))K "$RUN/../ballast" || exit 7
"$@" max_images=160 2> "$KEPT/error"; echo $? > "$KEPT/status"
fallocate -l "$(df --output=avail -k "$RUN" | tail -n 1)K" "$RUN/../rest" || exit 7
"$@" max_images=160 2> "$KEPT/error-full"; echo $? > "$KEPT/status-full"
cp -r "$RUN" "$KEPT/full"
rm "$RUN/../ballast" "$RUN/../rest"
"$@" max_images=160 || exit 6
cp -r "$RUN" "$KEPT/run"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(run, f"max_images={WHOLE}")
    assert done.returncode == 0, done.stderr
    return run


def same(run, other):
    """The losses, and every tensor of the last checkpoint."""

    def found(url):
        last = store.join(str(url), "checkpoints", f"{WHOLE:012d}")
        names = [name for name in store.names(last) if name.endswith(".safetensors")]
        lines = store.read(store.join(str(url), "steps.jsonl"))
        return lines, {name: store.read(store.join(last, name)) for name in names}

    return found(run) == found(other)


DIVERGES = "objective.phases=[{until: 32, lr: 1.0e-3}, {until: null, lr: 1.0e+30}]"


def test_a_run_that_diverges_ends_in_one_line_and_keeps_the_last_good_checkpoint(train, tmp_path):
    run = tmp_path / "run"
    words = [DIVERGES, f"max_images={WHOLE}", "checkpoint.every_images=16", "checkpoint.keep=1"]
    done = train(run, *words, "processes=2")
    assert done.returncode == 1, done.stderr
    assert "non-finite gradients in 10 consecutive steps" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and "rank" not in done.stderr.splitlines()[-1]
    (last,) = list_checkpoints(str(run))
    assert last.images_seen == 32 and last.state["skipped"] == 0
    for name in last.state["files"]:
        assert all(tensor.isfinite().all() for tensor in last.read(name).values())
    again = train(run, *words, "processes=2")
    assert again.returncode == 1 and f" at 32 of {WHOLE}" in again.stderr, again.stderr
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines[:4]] == [0] * 4 and lines[-1]["skipped"] == 10


def test_non_finite_images_end_training_before_a_save(train, tmp_path):
    words = [DIVERGES, "max_images=48", "checkpoint.every_images=16", "validate.every_images=16"]
    done = train(tmp_path / "run", *words, "processes=1")
    assert done.returncode == 1, done.stderr
    assert "validation gave non-finite images" in done.stderr.splitlines()[-1]
    assert [c.images_seen for c in list_checkpoints(str(tmp_path / "run"))] == [16, 32]


def test_a_full_disk_ends_a_run_in_one_line_and_changes_no_bit(undisturbed, small_set, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["train", *TINY, "processes=1", f"data.url={small_set}", f"run={disk}/run"]
    apart = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    done = subprocess.run(
        [*apart, "sh", "-c", FULL_DISK, "sh", disk, sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RUN": f"{disk}/run", "KEPT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    for name in ("", "-full"):  # no room for a checkpoint; none at all
        error = (tmp_path / f"error{name}").read_text()
        assert (tmp_path / f"status{name}").read_text() == "1\n", error
        last = error.splitlines()[-1]
        assert "No space left on device" in last and "free some space" in last, error
        assert "Traceback" not in error
    kept = list_checkpoints(str(tmp_path / "full"))
    assert [c.images_seen for c in kept] == [HALF] and is_whole(kept[0])
    assert same(tmp_path / "run", undisturbed)


def keep_vgg16(cache):
    path = cache / "lacuna" / "weights" / "vgg16.safetensors"
    path.parent.mkdir(parents=True)
    save_file(VGG16Features().state_dict(), path, {"sha256": "ab" * 32})


def test_a_run_resumes_only_with_the_same_vgg16_weights(train, tmp_path):
    """It is in no checkpoint, and a cache may be a node's own: losses would change unsaid."""
    keep_vgg16(tmp_path / "with")
    caches = [{"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("with", "without")]
    words = ["objective=msanet_vgg", "processes=1"]
    done = train(tmp_path / "run", *words, "max_images=8", env=caches[0])
    assert done.returncode == 0, done.stderr
    done = train(tmp_path / "run", *words, "max_images=16", env=caches[1])
    assert done.returncode == 2 and "fetch vgg16" in done.stderr, done.stderr
    done = train(tmp_path / "run", *words, "max_images=16", "weights=random", env=caches[1])
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "with vgg16 weights random: it was trained with abababababab; give" in last
    assert images_saved(str(tmp_path / "run")) == 8


@pytest.mark.s3
def test_a_lost_bucket_ends_a_run_in_one_line_and_changes_no_bit(undisturbed, faults, train):
    run = f"{faults.server.bucket()}/run"
    assert train(run, f"max_images={HALF}").returncode == 0
    faults.set({"act": "reset", "method": "PUT", "path": f"checkpoints/{WHOLE:012d}", "times": 999})
    done = train(run, f"max_images={WHOLE}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert faults.server.endpoint in last, done.stderr
    assert "Traceback" not in done.stderr
    kept = list_checkpoints(run)
    assert [c.images_seen for c in kept] == [HALF] and is_whole(kept[0])
    faults.set()
    done = train(run, f"max_images={WHOLE}")
    assert done.returncode == 0 and f" at {HALF} of {WHOLE}" in done.stderr, done.stderr
    assert same(run, undisturbed)
