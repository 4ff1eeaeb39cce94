"""Bytes that somebody else wrote: every reader answers them, or refuses them with a ValueError.

Hypothesis damages files that our own writers made, and invents others. A reader may hold a bounded
number of bytes while it reads a small file. What was found stays below as an `example`.
"""

import io
import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.inference import archive, images
from pipeline.runs import checkpoints, job_record
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import spool
from shards import decode, pack
from shards import manifest as manifests
from shards.sources.files import list_files
from shards.sources.published import parse_labels, read_list
from tests.support.sets import image_set, jpeg, smooth_image

pytestmark = pytest.mark.slow
MEMORY = 48 << 20  # bytes, for files of a few kB
REFUSED = (ValueError, OSError)


def picture(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(smooth_image(1, 24, 24)).save(sink, kind)
    return sink.getvalue()


def mask() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))).save(
        sink, "PNG"
    )
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("a/1.jpg", "b/ä.png"):
            data = jpeg(smooth_image(2, 16, 16))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for name, data in records.items():
            file.writestr(
                zipfile.ZipInfo(name), data, method
            )  # dated 1980: the same bytes each time
    return sink.getvalue()


def strange(at: int, value: int) -> bytes:
    """A zip of one record, with a byte of its entry in the list of records replaced."""
    data = bytearray(zipped({"m/a.json": b"{}"}))
    data[data.index(b"PK\1\2") + at] = value
    return bytes(data)


MODEL = {"guards_code": [], "graph_module": {"graph": {"nodes": [{"target": "aten.add.Tensor"}]}}}
CONFIG = {"config": {"w": {"use_pickle": False, "path_name": "weight_0"}}}
ARCHIVE = zipped({
    "m/models/model.json": json.dumps(MODEL).encode(), "m/version": b"6",
    "m/data/weights/model_weights_config.json": json.dumps(CONFIG).encode(),
    "m/data/weights/weight_0": b"\0" * 64,
})  # fmt: skip
STATE = {"schema": 1, "images_seen": 8, "files": {"generator": {"bytes": 1, "sha256": "0"}}}
RECORD = {"id": "a", "verb": "train", "run": "r", "folder": "r", "number": "1", "submitted": "t",
          "cluster": {"scheduler": "slurm"}}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sharded set and a folder for the bytes of an example."""
    folder = tmp_path_factory.mktemp("foreign")
    image_set(folder / "set", 3, side=16)
    return folder


def whole(made: Path, name: str) -> bytes:
    """A file that is read, as one of our writers or a publisher makes it."""
    ours = {
        "manifest": "set/manifest.json",
        "index": "set/train/index/shard-000000.parquet",
        "plan": "set/plan.json",
    }
    if name in ours:
        return (made / ours[name]).read_bytes()
    return {
        "tar": tar,
        "zip": lambda: zipped({"a/1.jpg": picture("JPEG")}, zipfile.ZIP_DEFLATED),
        "archive": lambda: ARCHIVE,
        "state": lambda: json.dumps(STATE).encode(),
        "run": lambda: json.dumps({"mlflow_run_id": "m", "pinned": [8]}).encode(),
        "job": lambda: json.dumps(RECORD).encode(),
        "events": lambda: b'{"kind": "metrics", "t": 1, "step": 2}\n' * 2 + spool.END,
        "cursor": lambda: b'{"segment": 1, "offset": 3}',
        "list": lambda: b"/a/airfield/1.jpg 0\n/b/2.jpg 1\n",
        "jpeg": lambda: picture("JPEG"),
        "png": lambda: picture("PNG"),
        "webp": lambda: picture("WEBP"),
        "tiff": lambda: picture("TIFF"),
        "gif": lambda: picture("GIF"),
        "mask": mask,
    }[name]()


def checkpoint(folder: Path, data: bytes) -> None:
    place = folder / "run/checkpoints/000000000008/state.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    checkpoints.latest(str(folder / "run"))
    checkpoints.images_saved(str(folder / "run"))


def run_json(folder: Path, data: bytes) -> None:
    (folder / "run.json").write_bytes(data)
    read_run_json(str(folder))


def listed(folder: Path, data: bytes, suffix: str) -> None:
    (folder / f"any.{suffix}").write_bytes(data)
    list(list_files(folder / f"any.{suffix}"))


def drained(folder: Path, events: bytes, cursor: bytes = b"") -> None:
    place = folder / "spool"
    place.mkdir(exist_ok=True)
    (place / "events-000001.jsonl").write_bytes(events)
    (place / spool.CURSOR).write_bytes(cursor)
    for event in spool.Unsent(place).read():
        assert isinstance(event.fields, dict)


def decoded(folder: Path, data: bytes) -> None:
    for read in (images.decode, decode.header, decode.decode):
        try:
            read(data)
        except REFUSED:
            continue


def labels(folder: Path, data: bytes) -> None:
    (folder / "list.txt").write_bytes(data)
    parse_labels(read_list(folder, "list.txt"), "list.txt")


READERS = {
    "manifest": lambda folder, data: manifests.decode(data, "set"),
    "index": lambda folder, data: pack.index_meta(data),
    "tar": lambda folder, data: listed(folder, data, "tar"),
    "zip": lambda folder, data: listed(folder, data, "zip"),
    "archive": lambda folder, data: archive.check(data, "model"),
    "state": checkpoint,
    "run": run_json,
    "job": lambda folder, data: job_record.parse(data, "r"),
    "events": drained,
    "cursor": lambda folder, data: drained(folder, b'{"kind": "a", "t": 1}\n', data),
    "list": labels,
    "mask": lambda folder, data: images.decode_mask(data, "mask"),
    **dict.fromkeys(("jpeg", "png", "webp", "tiff", "gif"), decoded),
}
# Each was found by this file and is answered now.
FOUND = {
    "state": [b"[]", b"null", b'{"schema": 1, "files": 3}'],
    "run": [b"null"],
    "archive": [
        zipped({"m/bomb.json": b" " * (64 << 20)}, zipfile.ZIP_DEFLATED),
        strange(8, 1),  # encrypted
        strange(10, 11),  # no compression that there is
    ],
}


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """`data` cut, with bytes replaced, inserted or repeated; or another text or JSON document."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "insert", "repeat", "json", "any"]))
    at = draw(st.integers(0, len(data)))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytearray(data)
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            changed[place] = draw(st.integers(0, 255))
        return bytes(changed)
    if kind == "insert":
        return data[:at] + draw(st.binary(max_size=40)) + data[at:]
    if kind == "repeat":
        return data[:at] + data[at : at + 512] * draw(st.integers(2, 5)) + data[at:]
    if kind == "json":
        return draw(json_like(data))
    return draw(st.binary(max_size=600))


@st.composite
def json_like(draw, data: bytes) -> bytes:
    """A JSON document like that in `data`, one of its values replaced by one of another type."""
    other = draw(st.sampled_from([None, True, -1, 10**30, 0.5, "", "x", [], [[]], {}, {"a": {}}]))
    try:
        document = json.loads(data)
    except ValueError:
        return json.dumps(other).encode()
    node, holders = document, []
    while isinstance(node, (dict, list)) and node:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        holders.append((node, draw(st.sampled_from(list(keys)))))
        node = node[holders[-1][1]]
        if draw(st.booleans()):
            break
    if not holders or draw(st.integers(0, 9)) == 0:
        return json.dumps(other).encode()
    holder, key = holders[-1]
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = other
    return json.dumps(document).encode()


def answered(read, folder: Path, data: bytes) -> None:
    """Assert that a reader returns or raises a ValueError, and holds a bounded number of bytes."""
    tracemalloc.start()
    try:
        read(folder, data)
    except REFUSED as error:
        assert str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak >> 20} MiB for {len(data)} bytes"


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_any_bytes(made, name, soak):
    data = whole(made, name)
    answered(READERS[name], made, data)
    tried = 0

    @settings(
        max_examples=20_000 if soak.full else 60,
        derandomize=not soak.full,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(data))
    def any_bytes(changed):
        nonlocal tried
        tried += 1
        answered(READERS[name], made, changed)

    any_bytes()
    print(f"foreign inputs: {tried} for {name}")


@pytest.mark.parametrize(("name", "number"), [(n, i) for n in FOUND for i in range(len(FOUND[n]))])
def test_what_was_found_is_answered(made, name, number):
    answered(READERS[name], made, FOUND[name][number])
