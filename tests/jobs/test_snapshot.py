"""A snapshot is the commit, or the commit and a recorded diff; the live checkout is never run."""

import os
import subprocess
import time

import pytest

from jobs import snapshot
from jobs.spec import SubmitError


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("committed\n")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *who, "commit", "-q", "-m", "one"], check=True)
    return folder


def unpacked(taken, folder):
    return (snapshot.unpack(snapshot.archive(taken), folder) / "code.py").read_text()


def test_a_clean_checkout_is_its_commit(checkout, tmp_path):
    taken = snapshot.take(checkout)
    assert taken.diff == "" and taken.commit.startswith(taken.name)
    assert unpacked(taken, tmp_path / "out") == "committed\n"


def test_the_same_commit_gives_the_same_bytes(checkout):
    taken = snapshot.take(checkout)
    assert snapshot.archive(taken) == snapshot.archive(taken)


def test_uncommitted_changes_are_refused_by_name(checkout):
    (checkout / "code.py").write_text("changed\n")
    with pytest.raises(SubmitError, match=r"code\.py.*cluster\.allow_dirty=true"):
        snapshot.take(checkout)


def test_allowed_changes_travel_with_their_diff_and_leave_the_checkout_alone(checkout, tmp_path):
    (checkout / "code.py").write_text("changed\n")
    before = subprocess.check_output(["git", "-C", checkout, "status", "--porcelain"])
    taken = snapshot.take(checkout, allow_dirty=True)
    assert "+changed" in taken.diff and "-" in taken.name
    assert unpacked(taken, tmp_path / "out") == "changed\n"
    assert subprocess.check_output(["git", "-C", checkout, "status", "--porcelain"]) == before
    assert (checkout / "code.py").read_text() == "changed\n"


def test_files_that_git_does_not_know_are_refused_or_travel_in_the_diff(checkout, tmp_path):
    (checkout / "new.py").write_text("unknown\n")
    (checkout / ".gitignore").write_text("left\n")
    (checkout / "left").write_text("ignored\n")
    with pytest.raises(SubmitError, match=r"new\.py"):
        snapshot.take(checkout)
    before = subprocess.check_output(["git", "-C", checkout, "status", "--porcelain"])
    taken = snapshot.take(checkout, allow_dirty=True)
    out = snapshot.unpack(snapshot.archive(taken), tmp_path / "out")
    assert (out / "new.py").read_text() == "unknown\n" and not (out / "left").exists()
    assert subprocess.check_output(["git", "-C", checkout, "status", "--porcelain"]) == before
    # The record is whole: git itself makes the same files of the commit and the diff.
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", checkout, clone], check=True)
    subprocess.run(["git", "-C", clone, "apply"], input=taken.diff, text=True, check=True)
    assert (clone / "new.py").read_text() == "unknown\n"


def test_the_same_changes_give_the_same_bytes_whenever_they_are_taken(checkout):
    (checkout / "code.py").write_text("changed\n")
    first = snapshot.take(checkout, allow_dirty=True)
    sent = snapshot.archive(first)
    time.sleep(1.1)  # git's clock ticks in seconds
    again = snapshot.take(checkout, allow_dirty=True)
    assert again.name == first.name and snapshot.archive(again) == sent


def everything(folder):
    """Every file below a folder, with what it holds."""
    return {str(p): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "on",
    [
        ["cluster=slurm", "cluster.gpus_per_node=0"],
        ["cluster=kubernetes", "cluster.image=r/x@sha256:0", "cluster.code=snapshot",
         "cluster.gpus_per_node=0", "root=s3://b/runs", "tracking.enabled=false"],
    ],
    ids=["slurm", "kubernetes"],
)  # fmt: skip
def test_a_dry_run_on_a_changed_checkout_writes_nothing_into_its_repository(cli, on):
    (cli.code / "pipeline" / "new.py").write_text("unknown = 1\n")
    (cli.code / "conf" / "cluster" / "local.yaml").touch()  # git would refresh its index
    before = everything(cli.code / ".git")
    words = ["submit", "train", "experiment=quickstart", "data.url=s3://b/set", *on, "--dry-run"]
    for allowed in ("false", "true"):
        told = cli(*words, f"cluster.allow_dirty={allowed}")
        assert told.stdout and ("to be mended" in told.stderr) == (allowed == "false")
    assert everything(cli.code / ".git") == before
    assert not (cli.cwd / "runs").exists()


def test_unknown_files_that_are_no_code_are_refused(checkout):
    with open(checkout / "picture.tar", "wb") as file:
        file.truncate(30_000_000)
    with pytest.raises(SubmitError, match=r"30 MB, the largest picture\.tar: add them to .git"):
        snapshot.take(checkout, allow_dirty=True)


def test_a_diff_with_a_secret_of_the_environment_is_refused(checkout, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    (checkout / "code.py").write_text("key = 'planted-secret'\n")
    with pytest.raises(SubmitError, match="AWS_SECRET_ACCESS_KEY") as refused:
        snapshot.take(checkout, allow_dirty=True)
    assert "planted-secret" not in str(refused.value)


def test_a_folder_that_is_no_checkout_is_told_what_to_do(tmp_path):
    with pytest.raises(SubmitError, match="is no git checkout.*cluster.code=image"):
        snapshot.take(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of somebody else takes root to make")
def test_what_git_says_against_a_checkout_is_told(checkout, monkeypatch):
    os.chown(checkout, 12345, 12345)
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    with pytest.raises(SubmitError, match="dubious ownership.*safe.directory") as refused:
        snapshot.take(checkout)
    assert "no git checkout" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkout_without_a_commit_is_told_as_git_does(tmp_path):
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    with pytest.raises(SubmitError, match="Needed a single revision.*cluster.code=image"):
        snapshot.take(tmp_path)


def test_a_machine_without_git_is_told_so(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SubmitError, match="git cannot be run .*install it") as refused:
        snapshot.take(checkout)
    assert "no git checkout" not in str(refused.value)


def test_a_snapshot_is_unpacked_once(checkout, tmp_path):
    data = snapshot.archive(snapshot.take(checkout))
    folder = snapshot.unpack(data, tmp_path / "out")
    (folder / "mark").touch()
    assert (snapshot.unpack(data, folder) / "mark").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["checkout", "out"] or not list(
        tmp_path.glob(".code-*")
    )
