"""Sets that are damaged, foreign or newer, and what a reader says of them."""

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import external, store
from shards.decode import Crop
from shards.lookup import SampleError
from shards.manifest import open_manifest, read_index
from shards.masks import MaskPolicy
from shards.stream import Stream, examples
from tests.support.sets import image_set, jpeg, smooth_image


@pytest.fixture
def folder(tmp_path):
    image_set(tmp_path / "set", 60, per_shard=20)
    return tmp_path / "set"


def run(folder, steps=10, threads=1, **settings):
    manifest = open_manifest(str(folder))
    with Stream(
        manifest,
        "train",
        **{"batch": 12, "seed": 0, "crop": Crop(32), "threads": threads, **settings},
        masks=MaskPolicy("none"),
    ) as stream:
        return [next(stream).keys.tolist() for _ in range(steps)]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_one_flipped_bit_is_an_error_that_names_shard_key_and_offset(folder, threads):
    manifest = open_manifest(str(folder))
    row = read_index(manifest, "train", manifest.splits["train"].shards[1]).to_pylist()[7]
    flip(folder / "train/shard-000001.tar", row["offset"] + row["size"] // 2)
    named = f"shard-000001.tar: sample {row['key']} at byte {row['offset']}: its crc32.*3 times"
    with pytest.raises(SampleError, match=named):
        run(folder, threads=threads)
    with pytest.raises(SampleError, match=named):
        list(examples(manifest, "train"))


def test_damage_elsewhere_is_met_only_when_its_sample_comes(folder):
    """Batches before the damaged sample's are delivered, whatever was prefetched."""
    whole = run(folder, steps=5)
    bad = whole[3][0]
    manifest = open_manifest(str(folder))
    shard = manifest.splits["train"].shards[bad // 20]
    row = read_index(manifest, "train", shard).to_pylist()[bad % 20]
    flip(folder / "train" / shard.name, row["offset"] + 5)
    assert run(folder, steps=3, threads=2, prefetch=3) == whole[:3]
    with pytest.raises(SampleError):
        run(folder, steps=4, threads=2, prefetch=3)


def test_a_tar_of_another_length_is_refused(folder):
    tar = folder / "train/shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"shard-000000.tar: \d+ bytes, but \d+ in its manifest"):
        run(folder)


def test_a_missing_tar_is_named(folder):
    (folder / "train/shard-000002.tar").unlink()
    with pytest.raises(ValueError, match="shard-000002.tar: no such tar"):
        run(folder)


@pytest.mark.parametrize("threads", [0, 2])
def test_the_index_of_another_shard_is_refused(folder, threads):
    index = folder / "train/index"
    shutil.copy(index / "shard-000001.parquet", index / "shard-000000.parquet")
    with pytest.raises(ValueError, match=r"shard-000000.parquet: its sha256 differs"):
        run(folder, threads=threads)


def test_a_tar_of_another_set_under_this_index_is_an_error(folder, tmp_path):
    other = image_set(tmp_path / "other", 60, per_shard=20, side=36)
    tar = folder / "train/shard-000000.tar"
    length = tar.stat().st_size
    data = Path(other.url, "train/shard-000000.tar").read_bytes()
    tar.write_bytes(data[:length].ljust(length, b"\0"))
    with pytest.raises(SampleError, match="crc32"):
        run(folder)


def test_a_manifest_of_a_newer_schema_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        run(folder)


def test_an_unfinished_set_is_no_set(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no manifest.json"):
        run(folder)


def test_bytes_that_are_no_image_are_named(folder, tmp_path):
    from shards.writer import write_set
    from tests.support.sets import sample

    broken = [sample("ok", jpeg(smooth_image(0)), 40, 40), sample("no", b"\xff\xd8 not", 40, 40)]
    write_set(str(tmp_path / "x"), "x", "images", {"train": broken}, options={}, per_shard=9)
    with pytest.raises(ValueError, match=r"shard-000000.tar: sample 000000001 at byte \d+"):
        run(tmp_path / "x", batch=1)


# --- other people's tars --------------------------------------------------------------------------


def encoded(pixels, form, **options):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()


def test_other_peoples_tars_stream_upright_and_in_eight_bits(tmp_path):
    turned = Image.fromarray(smooth_image(1, 40, 60))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    sink = io.BytesIO()
    turned.save(sink, "JPEG", quality=95, exif=exif)
    deep = (smooth_image(2, 40, 40)[..., 0].astype(np.uint16) << 8) + 77
    clear = np.dstack([smooth_image(3, 40, 40), np.zeros((40, 40), np.uint8)])
    members = {
        "a.jpg": jpeg(smooth_image(0, 40, 40), 95),
        "b.jpg": sink.getvalue(),
        "c.png": encoded(deep, "PNG"),
        "d.png": encoded(clear, "PNG"),
        "d.cls": b"5",
    }
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    external.write(str(tmp_path / "set"), "x", str(tmp_path / "theirs.tar"), lambda _: None)
    manifest = open_manifest(str(tmp_path / "set"))
    plain, upright, gray, white = (pixels for _, pixels in examples(manifest, "train"))
    assert np.abs(plain.astype(int) - smooth_image(0, 40, 40)).mean() < 6
    assert upright.shape == (60, 40, 3)
    assert np.abs(upright.astype(int) - np.rot90(smooth_image(1, 40, 60), -1)).mean() < 6
    assert (gray == (deep >> 8)[..., None]).all()
    assert (white == 255).all()
    with Stream(
        manifest, "train", batch=4, seed=0, crop=Crop(40), masks=MaskPolicy("none"), threads=1
    ) as stream:
        batch = next(stream)
    by_key = dict(zip(batch.keys.tolist(), batch.images.numpy()))
    assert (by_key[2] == gray).all() and (by_key[3] == white).all() and (by_key[0] == plain).all()


# --- processes ------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from shards.decode import Crop
from shards.manifest import open_manifest
from shards.masks import MaskPolicy
from shards.stream import Stream
stream = Stream(open_manifest(sys.argv[1]), "train", batch=12, seed=0, crop=Crop(32),
                masks=MaskPolicy("irregular"), threads=2)
next(stream)
print("running", flush=True)
if sys.argv[2] == "wait":
    while True:
        time.sleep(0.01); next(stream)
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("how", "number", "status"),
    [
        ("wait", signal.SIGTERM, -signal.SIGTERM),
        ("wait", signal.SIGKILL, -signal.SIGKILL),
        ("wait", signal.SIGINT, None),
        ("raise", None, 3),
        ("leave", None, 0),
    ],
)
def test_a_process_that_is_stopped_never_hangs_on_its_stream(folder, how, number, status):
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None and started.stdout.readline() == "running\n"
        if number is not None:
            started.send_signal(number)
        _, stderr = started.communicate(timeout=30)
    finally:
        started.kill()
    assert status is None or started.returncode == status
    assert "Fatal" not in stderr


def test_a_shard_url_is_never_run(tmp_path):
    """A manifest of somebody else's tars cannot name a command: `pipe:` is only a file's name."""
    image_set(tmp_path / "set", 4)
    path = tmp_path / "set/manifest.json"
    document = json.loads(path.read_text())
    document["kind"] = "external"
    document["splits"]["train"]["shards"][0]["name"] = f"pipe:touch {tmp_path}/ran"
    path.write_text(json.dumps(document))
    with pytest.raises((ValueError, OSError)):
        run(tmp_path / "set", batch=2)
    assert not store.exists(str(tmp_path / "ran"))
