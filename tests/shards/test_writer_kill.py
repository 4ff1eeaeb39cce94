"""kill -9 at any point, any number of times, over a network that fails: the same bytes.

A process shards to S3 through a proxy that fails 15 % of its requests; it is killed at random
moments again and again, and then left to finish. What lies in the bucket must be what an
undisturbed run makes on a local disk, byte for byte, and nothing else.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards import objects, store
from shards.manifest import open_manifest
from tests.support.s3 import Faults
from tests.support.sets import jpeg, smooth_image
from tests.support.soak import Soak

RUN = """
import sys
from pathlib import Path
from shards import plan, writer
from shards.hygiene import Policy
from shards.sources import source
from shards.sources.files import Loader

def main(photos, out, workers):
    options = {**Policy().options(), "seed": 0, "shard_bytes": 30_000}
    made = plan.load(out, "photos", "images", options) or plan.make_plan(
        "photos", "images", source("folder").entries(photos, 0.1),
        seed=0, shard_bytes=30_000, options=options)
    print("planned", flush=True)
    for _ in writer.write(out, made, Loader(photos, Policy()), workers=workers):
        print("shard", flush=True)
    writer.finalize(out, made)

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""
FAULTS = [
    {"act": "status", "status": 503, "code": "SlowDown", "rate": 0.05},
    {"act": "reset", "rate": 0.05},
    {"act": "truncate", "bytes": 40, "rate": 0.05},
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(400):
        (root / f"{number:04d}.jpg").write_bytes(jpeg(smooth_image(number, 48, 48)))
    (root / "bad.jpg").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(RUN)
    return path


def start(script: Path, photos: Path, out: str, workers: int = 1) -> subprocess.Popen:
    command = [sys.executable, str(script), str(photos), out, str(workers)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def clean(script: Path, photos: Path, out: Path) -> dict[str, str]:
    process = start(script, photos, str(out))
    assert process.wait() == 0
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def objects_below(url: str) -> dict[str, str]:
    system, root = objects._system(url)
    found = objects.with_retries(url, lambda system, path: system.find(path))
    return {
        path.removeprefix(root + "/"): hashlib.sha256(store.read("s3://" + path)).hexdigest()
        for path in found
    }


def kill_after_lines(process: subprocess.Popen, count: int, pause: float) -> int:
    """kill -9 a moment after the plan (1) or so many shards; 0 when it ended by itself before."""
    assert process.stdout is not None
    for _ in range(count):
        if not process.stdout.readline():
            return process.wait()
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
def test_a_local_run_that_is_killed_ends_in_the_same_bytes(
    script: Path, photos: Path, tmp_path: Path
) -> None:
    expected = clean(script, photos, tmp_path / "clean")
    out = tmp_path / "killed"
    assert kill_after_lines(start(script, photos, str(out)), 4, 0.004) == -signal.SIGKILL
    with pytest.raises(ValueError, match="not a finished sharded set"):
        open_manifest(str(out))
    assert start(script, photos, str(out)).wait() == 0
    published = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and not store.TEMPORARY.match(path.name)
    }
    assert published == expected


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.s3
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_over_a_failing_network_killed_again_and_again_ends_in_the_same_bytes(
    script: Path, photos: Path, tmp_path: Path, faults: Faults, soak: Soak, workers: int
) -> None:
    expected = clean(script, photos, tmp_path / "clean")
    out = faults.server.bucket() + "/deep/set"
    faults.set(*FAULTS)
    chance = random.Random(soak.seed + workers)
    for _ in range(soak.count(60)):
        process = start(script, photos, out, workers)
        code = kill_after_lines(process, 1, chance.random() * 0.1)
        assert code == -signal.SIGKILL, "it ended before it was killed"
        with pytest.raises(ValueError, match="not a finished sharded set"):
            open_manifest(out)
    assert start(script, photos, out, workers).wait() == 0
    injected = sum(act != "pass" for *_, act in faults.log())
    faults.set()
    assert injected >= 10
    assert objects_below(out) == expected
    assert objects.unfinished_uploads(out + "/") == []
