"""The manifest: the last thing published, the only thing opened."""

import hashlib
import json
from pathlib import Path

import pytest

from shards import manifest as manifests
from shards.manifest import Shard, Split, decode, encode, open_manifest, read_index
from tests.support.sets import image_set

SPLITS = {"train": Split(3, (Shard("shard-000000.tar", 10240, 3, "a" * 64, "b" * 64),))}


def changed(**keys: object) -> bytes:
    document = json.loads(encode("x", "images", "c" * 64, SPLITS))
    return json.dumps({**document, **keys}).encode()


def test_it_has_exactly_the_documented_keys_sorted_and_no_time() -> None:
    document = json.loads(encode("x", "images", "c" * 64, SPLITS))
    assert list(document) == ["kind", "name", "plan_sha256", "schema", "splits"]
    assert document["splits"]["train"] == {
        "samples": 3,
        "shards": [
            {
                "bytes": 10240,
                "index_sha256": "b" * 64,
                "name": "shard-000000.tar",
                "samples": 3,
                "sha256": "a" * 64,
            }
        ],
    }


def test_what_is_encoded_is_decoded_and_its_digest_is_the_sha256_of_its_bytes() -> None:
    data = encode("x", "images", "c" * 64, SPLITS)
    read = decode(data, "s3://b/set")
    assert (read.name, read.kind, dict(read.splits)) == ("x", "images", SPLITS)
    assert read.digest == hashlib.sha256(data).hexdigest()
    (shard,) = read.splits["train"].shards
    assert read.shard_url("train", shard) == "s3://b/set/train/shard-000000.tar"
    assert read.index_url("train", shard) == "s3://b/set/train/index/shard-000000.parquet"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a manifest of a sharded set"),
        (b"[]", "not a manifest of a sharded set"),
        (b"\xff\xfe", "not a manifest of a sharded set"),
        (b'{"schema": 1}', "not a manifest of a sharded set"),
        (changed(schema=2), "schema 2, but this version reads up to 1"),
        (changed(schema="x"), "schema 'x'"),
        (changed(kind="videos"), "unknown kind 'videos': expected one of images, external, masks"),
        (changed(splits={"../up": {"samples": 0, "shards": []}}), "invalid split name '../up'"),
        (
            changed(splits={"a": {"samples": 5, "shards": []}}),
            "samples of split a differ from the sum",
        ),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(data, "s3://user:secret@bucket/set")
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "shard-1.tar", "pipe:rm x", "/shard-000000.tar"]
)
def test_a_shard_cannot_point_out_of_its_set(name: str) -> None:
    splits = {"train": Split(3, (Shard(name, 1, 3, "", ""),))}
    with pytest.raises(ValueError, match="invalid shard name"):
        decode(encode("x", "images", "", splits), "s3://b/set")


def test_an_external_shard_is_where_its_url_says() -> None:
    shards = tuple(Shard(f"s3://theirs/{i}.tar", 1, 1, "", "") for i in range(2))
    read = decode(encode("x", "external", "", {"train": Split(2, shards)}), "/ours")
    second = read.splits["train"].shards[1]
    assert read.shard_url("train", second) == "s3://theirs/1.tar"
    assert read.index_url("train", second) == "/ours/train/index/shard-000001.parquet"


def test_without_a_manifest_there_is_no_set(tmp_path: Path) -> None:
    for url in (str(tmp_path), str(tmp_path / "nowhere"), f"file://{tmp_path}"):
        with pytest.raises(ValueError, match="so it is not a finished sharded set"):
            open_manifest(url)


def test_a_set_opens_by_its_folder_its_manifest_or_its_url(tmp_path: Path) -> None:
    made = image_set(tmp_path, 5)
    for url in (f"{tmp_path}/", f"{tmp_path}/manifest.json", f"file://{tmp_path}"):
        assert open_manifest(url).digest == made.digest


def test_an_index_is_read_with_the_columns_of_its_kind(tmp_path: Path) -> None:
    made = image_set(tmp_path, 5)
    table = read_index(made, "train", made.splits["train"].shards[0])
    assert table.schema.remove_metadata() == manifests.COLUMNS["images"]
    assert table["sample_id"].to_pylist() == [0, 1, 2, 3, 4]


def test_an_index_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    made = image_set(tmp_path / "a", 5)
    image_set(tmp_path / "b", 6)
    (shard,) = made.splits["train"].shards
    index = Path(made.index_url("train", shard))
    index.write_bytes((tmp_path / "b" / "train" / "index" / index.name).read_bytes())
    with pytest.raises(ValueError, match="its sha256 differs from the manifest"):
        read_index(made, "train", shard)
    index.unlink()
    with pytest.raises(ValueError, match="no such index"):
        read_index(made, "train", shard)
