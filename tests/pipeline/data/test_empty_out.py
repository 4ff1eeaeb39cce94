"""A folder with nothing but what consoles, file managers and disks leave there is an empty one."""

import json
from pathlib import Path

import boto3
import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.quickstart.steps import recorded
from pipeline.runs.folder import folder_at
from pipeline.runs.identity import check_same
from tests.conftest import run_verb
from tests.support.sets import jpeg, smooth_image

LEFT = (".DS_Store", "._.DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/x", "lost+found/x")


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photo")
    (folder / "1.jpg").write_bytes(jpeg(smooth_image(1)))
    return folder


def take(command: str, out: str, photo: Path) -> dict:
    words = {
        "shard": (f"source={photo}", "data.holdout=0", "data.min_side=8"),
        "masks": ("size=32", "per_bucket=1"),
    }
    done = run_verb(command, *words[command], f"out={out}", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Row 10
@pytest.mark.parametrize("left", LEFT)
def test_a_local_folder_with_such_files_is_taken_by_every_command(
    tmp_path: Path, photo: Path, left: str
) -> None:
    digests = set()
    for command in ("shard", "masks"):
        out = tmp_path / command
        (out / left).parent.mkdir(parents=True)
        (out / left).write_bytes(b"x")
        digests.add(take(command, str(out), photo)["digest"])
        digests.add(take(command, f"{out}-new", photo)["digest"])
    assert len(digests) == 2
    (tmp_path / "run" / left).parent.mkdir(parents=True)
    (tmp_path / "run" / left).write_bytes(b"x")
    check_same(compose("train", [f"run={tmp_path / 'run'}"]).config, folder_at(f"{tmp_path}/run"))
    assert recorded(tmp_path / "run", "run") == {}
    (tmp_path / "run" / "thesis.tex").write_bytes(b"x")
    with pytest.raises(ConfigError, match="holds other files"):
        recorded(tmp_path / "run", "run")


# Row 10
@pytest.mark.s3
@pytest.mark.parametrize("left", ["", ".DS_Store"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_made_in_a_console_is_taken_by_every_command(
    bucket: str, photo: Path, left: str, slash: str
) -> None:
    for command in ("shard", "masks", "run"):
        boto3.client("s3").put_object(
            Bucket=bucket.removeprefix("s3://"), Key=f"sets/{command}/{left}", Body=b""
        )
    assert take("shard", f"{bucket}/sets/shard{slash}", photo)["splits"] == {"train": 1}
    assert take("masks", f"{bucket}/sets/masks{slash}", photo)["masks"] == 7
    run = f"{bucket}/sets/run{slash}"
    check_same(compose("train", [f"run={run}"]).config, folder_at(run))
