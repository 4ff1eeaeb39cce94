"""A set after it was written: verified to the byte, described, and swept with care."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shards import objects, store, upkeep
from shards.manifest import Manifest
from tests.support.sets import image_set


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    return image_set(tmp_path / "set", 20, per_shard=8)


def faults(manifest: Manifest, every_byte: bool, workers: int = 2) -> list[str]:
    return [
        f"{checked.shard}: {fault}"
        for checked in upkeep.verify(manifest, every_byte=every_byte, workers=workers)
        for fault in checked.faults
    ]


def change(manifest: Manifest, name: str, edit) -> None:
    path = Path(manifest.url) / "train" / name
    path.write_bytes(edit(path.read_bytes()))


def test_a_whole_set_has_no_faults(made: Manifest) -> None:
    checked = list(upkeep.verify(made, every_byte=True, workers=2))
    assert [c.samples for c in checked] == [8, 8, 4]
    assert not any(c.faults for c in checked)


def test_one_flipped_bit_is_found_in_its_sample_and_only_by_reading_every_byte(
    made: Manifest,
) -> None:
    def flip(data: bytes) -> bytes:
        return data[:600] + bytes([data[600] ^ 1]) + data[601:]

    change(made, "shard-000001.tar", flip)
    assert faults(made, every_byte=False) == []
    assert faults(made, every_byte=True) == [
        "shard-000001.tar: its sha256 differs",
        "shard-000001.tar: sample 000000008 is damaged",
    ]


def test_a_short_tar_a_lost_tar_and_a_foreign_index_are_each_found(made: Manifest) -> None:
    change(made, "shard-000000.tar", lambda data: data[:-512])
    (Path(made.url) / "train" / "shard-000001.tar").unlink()
    change(made, "index/shard-000002.parquet", lambda data: data + b"x")
    found = faults(made, every_byte=False)
    assert len(found) == 3
    assert "in the manifest" in found[0]
    assert found[1] == "shard-000001.tar: missing"
    assert "its sha256 differs from the manifest" in found[2]


def test_info_counts_what_is_there(made: Manifest) -> None:
    info = upkeep.info(made)
    assert info["digest"] == made.digest
    train = info["splits"]["train"]
    assert (train["samples"], train["shards"], train["duplicates"]) == (20, 3, 0)
    assert train["short_side"] == [40, 40, 40]
    tars = list((Path(made.url) / "train").glob("*.tar"))
    assert train["bytes"] == sum(tar.stat().st_size for tar in tars)
    assert info["rejects"] == {}


# --- gc -------------------------------------------------------------------------------------------


def leave(folder: Path, name: str, hours: float) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


def test_only_our_temporary_files_older_than_asked_are_orphans(made: Manifest) -> None:
    folder = Path(made.url) / "train"
    old = leave(folder, ".shard-000009.tar.0123456789abcdef.lacuna-tmp", 30)
    leave(folder, ".shard-000008.tar.0123456789abcdef.lacuna-tmp", 2)
    leave(folder, ".shard-000009.tar.swp", 30)
    leave(folder, "notes.txt", 30)
    found = upkeep.orphans(made.url, upkeep.parse_age("24h"))
    assert [(orphan.url, orphan.kind) for orphan in found] == [(str(old), "file")]
    assert 29 < found[0].age / 3600 < 31
    assert old.exists()
    for orphan in found * 2:
        upkeep.discard(orphan)
    assert not old.exists()
    assert len(list(folder.iterdir())) == 3 + 1 + 3


def test_where_no_set_was_begun_nothing_is_ours(tmp_path: Path) -> None:
    leave(tmp_path, ".x.0123456789abcdef.lacuna-tmp", 100)
    with pytest.raises(ValueError, match="is not a sharded set"):
        upkeep.orphans(str(tmp_path), upkeep.DAY)


@pytest.mark.parametrize(
    ("text", "value"), [("24h", 86400), ("7d", 7 * 86400), ("2000m", 120_000), ("90000s", 90_000)]
)
def test_a_duration_is_read(text: str, value: float) -> None:
    assert upkeep.parse_age(text) == value


@pytest.mark.parametrize("text", ["23h", "0d", "1", "day", "-3d", ""])
def test_a_duration_below_a_day_or_none_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="older_than="):
        upkeep.parse_age(text)


@pytest.mark.s3
def test_an_upload_left_open_is_an_orphan_once_it_is_old(
    both: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(f"{both}/set/plan.json", b"{}")
    for key in ("set/train/shard-000000.tar", "set-of-others/x"):
        objects.with_retries(
            both,
            lambda system, _, key=key: system.call_s3(
                "create_multipart_upload", Bucket=both.removeprefix("s3://"), Key=key
            ),
        )
    real = objects.unfinished_uploads

    def aged(hours: float) -> None:
        then = datetime.now(UTC) - timedelta(hours=hours)
        monkeypatch.setattr(
            objects, "unfinished_uploads", lambda url: [u._replace(started=then) for u in real(url)]
        )

    aged(2)
    assert upkeep.orphans(f"{both}/set", upkeep.DAY) == []
    aged(30)
    (found,) = upkeep.orphans(f"{both}/set", upkeep.DAY)
    assert found.kind == "upload" and found.url == f"{both}/set/train/shard-000000.tar"
    upkeep.discard(found)
    assert upkeep.orphans(f"{both}/set", upkeep.DAY) == []
    assert len(real(f"{both}/set-of-others/")) == 1
