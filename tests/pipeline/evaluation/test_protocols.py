"""Protocols of other papers: which images and masks they take, and what they refuse."""

import hashlib
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.evaluation import results
from tests.support.pairs import crops, image_set

NAMES = hashlib.sha256(b"0.png\n1.png").hexdigest()  # as `image_set` names two images


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets")
    for seed in (0, 1):
        words = ["kind=lama", "size=256", "per_bucket=2", f"seed={seed}", f"out={out}/{seed}"]
        assert cli.main(["masks", *words]) == 0
    return {
        "large": image_set(out / "large", crops(2, 256)),
        "reduced": image_set(out / "reduced", crops(2, 255)),
        "masks": f"{out}/0",
        "other": f"{out}/1",
    }


def evaluate(sets, tmp_path, images="large", masks="masks", *words):
    words = [f"data.url={sets[images]}", f"masks.url={sets[masks]}", *words]
    words += ["model=mean_color", "images=0", f"out={tmp_path}/t.parquet"]
    return cli.main(["evaluate", "protocol=lama256", *words])


def test_the_masks_of_a_protocol_are_drawn_and_evaluated(sets, tmp_path):
    assert evaluate(sets, tmp_path, "large", "masks", f"protocol.images={NAMES}") == 0
    table, facts = results.load(f"{tmp_path}/t.parquet")
    assert table["bucket"].to_pylist() == ["thin", "medium", "thick"] * 2
    assert (facts["masks_name"], facts["protocol_version"]) == ("lama-256-seed0-v1", 1)


@pytest.mark.parametrize(
    ("images", "masks", "words", "message"),
    [
        ("large", "masks", [], "its 2 images are not those of protocol=lama256"),
        ("reduced", "masks", ["data.resize_short=256"], "first 0.png, 255×255: shard the original"),
        ("large", "other", ["protocol.images=null"], "needs lama-256-seed0-v1: python -m pipeline"),
    ],
)
def test_other_images_or_masks_are_refused_by_name(
    images, masks, words, message, sets, tmp_path, capsys
):
    assert evaluate(sets, tmp_path, images, masks, *words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_full_digest_of_a_set_is_printed(sets, capsys):
    words = ["masks", "kind=lama", "size=256", "per_bucket=2", f"out={sets['masks']}"]
    assert cli.main(words) == 0
    digest = hashlib.sha256(Path(sets["masks"], "manifest.json").read_bytes()).hexdigest()
    assert f"digest {digest}" in "".join(capsys.readouterr())
    assert cli.main(["masks", "kind=mat", "size=256", "out=x"]) == 2
    assert "kind=mat has no size=256: give [512]" in capsys.readouterr().err
