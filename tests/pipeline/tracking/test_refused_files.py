"""A place of artifacts that refuses files holds up neither the numbers nor the end of a run."""

import json
import os
import re

import numpy as np
import pytest

from tests.support.records import client, run_of, steps, tracker


def below_a_file(root):
    (root / "file").write_text("")
    return f"{root}/file/artifacts", "Not a directory"


def not_writable(root):
    return "/sys/lacuna", "not permitted|denied"  # not even for root


def a_bucket_that_is_missing(root):
    return "s3://no-such-bucket-here/runs", "NoSuchBucket"


# Row 49
@pytest.mark.parametrize("place", [below_a_file, not_writable, a_bucket_that_is_missing])
def test_numbers_and_the_end_arrive_and_files_are_set_aside(  # noqa: F811
    root, bucket, capfd, monkeypatch, place
):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    location, words = place(root)
    client(root).create_experiment("me/recipe", artifact_location=location)
    with tracker(root, "run") as run:
        run.start({}, {})
        run.artifact("config.yaml", b"batch: 16\n")
        run.metrics({"g/l1": 1.0}, 1)
        run.image("val/s00/out", np.zeros((8, 8, 3), np.uint8), 1)
        run.metrics({"g/l1": 2.0}, 2)
    assert steps(root, "run") == [1, 2]
    assert run_of(root, "run").info.status == "FINISHED"
    lines = (root / "run/spool/rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert {r["kind"] for r in rejected} == {"artifact", "image"}
    for each in rejected:
        assert f"writes artifacts to {location}" in each["reason"].replace("file://", "")
        for name in each["files"]:
            assert (root / "run/spool/files" / name).exists(), "it is kept"
    said = [line for line in capfd.readouterr().err.splitlines() if "writes artifacts to" in line]
    assert said and all(re.search(words, line) for line in said)
    assert len(said) <= len(rejected)
