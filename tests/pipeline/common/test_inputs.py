"""No command overwrites what it reads, however the place is spelled."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.common.inputs import protect

PREDICT = "predict model=mean_color "


@pytest.fixture
def place(tmp_path):
    """`d` with two images, `masks` with their masks, and other names of all of them."""
    random = np.random.default_rng(0)
    for folder in ("d", "masks", "tars", "free"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (80, 80, 3), np.uint8)).save(
            tmp_path / f"d/{name}.png"
        )
        mask = np.zeros((80, 80), np.uint8)
        mask[20:40, 20:40] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "m.pt2").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "a-link.png").symlink_to("d/a.png")
    os.link(tmp_path / "d/a.png", tmp_path / "a-hard.png")
    os.link(tmp_path / "masks/a.png", tmp_path / "free/a_strip.png")
    return tmp_path


def held(place):
    return {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


REFUSED = [
    PREDICT + "image={0}/d mask={0}/masks/a.png out={0}/d",
    PREDICT + "image={0}/d mask={0}/masks/a.png out={0}/d/",
    PREDICT + "image=d mask=masks/a.png out=./d",
    PREDICT + "image=d mask=masks/a.png out=masks/../d",
    PREDICT + "image=link mask=masks/a.png out=d",
    PREDICT + "image=d mask=masks/a.png out=link",
    PREDICT + "image=d mask=masks/a.png out=file://{0}/d",
    PREDICT + "image=d mask=masks out=masks",
    PREDICT + "image=d mask=d/a.png out=d",
    PREDICT + "image=d/a.png mask=masks/a.png out=masks/a.png",
    PREDICT + "image=d/a.png mask=masks/a.png out=masks",
    PREDICT + "image=d/a.png mask=masks/a.png out=./d/a.png",
    PREDICT + "image=d/a.png mask=masks/a.png out=d",
    PREDICT + "image=d/a.png mask=masks/a.png out=a-link.png",
    PREDICT + "image=d/a.png mask=masks/a.png out=a-hard.png",
    PREDICT + "image=a-link.png mask=2,2,9,9 out=d/a.png",
    PREDICT + "image=d/a.png mask=masks/a.png out=free/a.png strip=true",
    "shard source=d out=link",
    "shard source=d out=d/set",
    "shard source=link out={0}/d/new/set",
    "shard data=wds source=tars out=file://{0}/tars/set",
    "masks source=masks out=./masks size=32",
    "masks source=masks out=masks/new size=32",
    "evaluate data.url=d predictions=masks export=./masks protocol.buckets=[center]",
    "evaluate predictions=d data.url=masks export=link protocol.buckets=[center]",
    "evaluate model=telea data.url=link export=d protocol.buckets=[center]",
    "evaluate model=m.pt2 data.url=d out=./m.pt2 protocol.buckets=[center]",
    "evaluate checkpoint=d data.url=tars masks.url=masks features=masks",
]


# Row 21
@pytest.mark.parametrize("line", REFUSED)
def test_an_output_that_is_an_input_is_refused_and_nothing_changes(
    place, monkeypatch, capsys, line
):
    from pipeline.cli import main

    monkeypatch.chdir(place)
    before = held(place)
    for words in (line, f"{line} --dry-run"):
        assert main(words.format(place).split()) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "would overwrite the input" in said or "lies inside the input" in said
    assert held(place) == before


@pytest.mark.parametrize(
    ("line", "made"),
    [
        (PREDICT + "image=d mask=masks out=new", ["new/a.png", "new/b.png"]),
        (PREDICT + "image=d/a.png mask=masks/a.png out=d/c.png", ["d/c.png"]),
        (PREDICT + "image=d mask=masks out=d/filled", ["d/filled/a.png", "d/filled/b.png"]),
    ],
)
def test_an_output_next_to_the_inputs_is_written(place, monkeypatch, line, made):
    from pipeline.cli import main

    monkeypatch.chdir(place)
    before = held(place)
    assert main(line.split()) == 0
    after = held(place)
    assert {str(p.relative_to(place)) for p in after.keys() - before.keys()} == set(made)
    assert {p: after[p] for p in before} == before


@pytest.mark.parametrize(
    ("source", "out", "below", "refused"),
    [
        ("s3://b/set", "s3://b/set/", False, True),
        ("s3://b/set", "s3a://b/set", False, True),
        ("s3://b/set", "s3://b/set/x", False, False),
        ("s3://b/set", "s3://b/set/x/y", True, True),
        ("s3://b/set", "s3://b/set1", True, False),
        ("s3://b/set", "s3://b/Set", True, False),
        ("s3://b/set/x", "s3://b/set", True, False),
    ],
)
def test_objects_are_compared_by_their_keys(source, out, below, refused):
    if refused:
        with pytest.raises(ValueError, match="input source="):
            protect({"source": [source]}, {"out": [out]}, below)
    else:
        protect({"source": [source]}, {"out": [out]}, below)
