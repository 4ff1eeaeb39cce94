"""A snapshot is the commit, or the commit and a recorded diff; the live checkout is never run."""

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from jobs import snapshot
from jobs.spec import SubmitError
from pipeline.submission import bootstrap


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


def configured(*words):
    """`git config` of the checkout."""
    return lambda root, _: subprocess.run(["git", "-C", root, "config", *words], check=True)


def attributes(line, *words):
    """Attributes of the user's own, which no commit holds."""

    def write(root, _):
        (root / ".git" / "info" / "attributes").write_text(line)
        configured(*words)(root, _)

    return write


USERS = {
    "external diff": configured("diff.external", "true"),
    "external diff of the environment": lambda _, env: env.setenv("GIT_EXTERNAL_DIFF", "true"),
    "no prefix": configured("diff.noprefix", "true"),
    "mnemonic prefix": configured("diff.mnemonicPrefix", "true"),
    "color": configured("color.ui", "always"),
    "copies": configured("diff.renames", "copies"),
    "no context": configured("diff.context", "0"),
    "line endings": configured("core.autocrlf", "true"),
    "text conversion": attributes("*.py diff=shown\n", "diff.shown.textconv", "true"),
    "filter": attributes("*.py filter=empty\n", "filter.empty.clean", "true"),
    "no export": attributes("*.py export-ignore\n", "diff.external", "true"),
    "a hook's index": lambda root, env: env.setenv("GIT_INDEX_FILE", f"{root}/.git/other"),
    "a hook's repository": lambda _, env: env.setenv("GIT_DIR", "/nowhere"),
    "unchanged, it is said": lambda root, _: subprocess.run(
        ["git", "-C", root, "update-index", "--assume-unchanged", "code.py"], check=True
    ),
    "another commit's content": lambda root, _: subprocess.run(
        "git replace HEAD $(git commit-tree -m other $(git mktree < /dev/null))",
        shell=True, cwd=root, check=True, env={**os.environ, **NOBODY},
    ),
}  # fmt: skip
NOBODY = {f"GIT_{who}_{what}": "n" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


# Row 42
@pytest.mark.parametrize("how", USERS)
def test_nothing_that_a_user_set_decides_what_is_run_or_recorded(
    checkout, tmp_path, monkeypatch, how
):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", checkout, clone], check=True)
    plain, texts = snapshot.take(checkout), [b"first = 1\n", b"second = 2\r\n"]

    def taken(text):
        (checkout / "code.py").write_bytes(text)
        return snapshot.take(checkout, allow_dirty=True)

    before = [taken(text) for text in texts]
    with monkeypatch.context() as environment:
        USERS[how](checkout, environment)
        with pytest.raises(SubmitError, match=r"uncommitted changes \(code\.py\)"):
            snapshot.take(checkout)
        assert [taken(text) for text in texts] == before
        (checkout / "code.py").write_text("committed\n")
        assert snapshot.take(checkout) == plain
    assert len({each.name for each in (plain, *before)}) == 3
    for each, text in zip(before, texts):
        out = snapshot.unpack(snapshot.archive(each), tmp_path / each.name)
        assert (out / "code.py").read_bytes() == text
        subprocess.run(["git", "-C", clone, "apply"], input=each.recorded, check=True)
        assert (clone / "code.py").read_bytes() == text
        subprocess.run(["git", "-C", clone, "checkout", "-q", "."], check=True)


def test_all_that_lies_in_a_checkout_travels_however_it_came_there(checkout, tmp_path):
    (checkout / ".gitignore").write_text("kept.py\nleft\n")
    for name in ("folder", "other"):
        (checkout / name).mkdir()
        (checkout / name / "a.py").write_text("a\n")
    subprocess.run(["git", "-C", checkout, "add", "-A"], check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", checkout, *who, "commit", "-q", "-m", "two"], check=True)
    (checkout / "left").write_text("ignored\n")
    assert snapshot.take(checkout).diff == ""
    (checkout / "kept.py").write_text("staged, though ignored\n")
    subprocess.run(["git", "-C", checkout, "add", "-f", "kept.py"], check=True)
    (checkout / "folder" / "a.py").unlink()
    (checkout / "folder").rmdir()
    (checkout / "folder").symlink_to("other")
    (checkout / "code.py").unlink()
    (checkout / "code.py").mkdir()
    (checkout / "code.py" / "é \n.py").write_text("deep\n")
    taken = snapshot.take(checkout, allow_dirty=True)
    out = snapshot.unpack(snapshot.archive(taken), tmp_path / "out")
    assert (out / "kept.py").read_text() == "staged, though ignored\n"
    assert (out / "folder").readlink() == Path("other")
    assert (out / "code.py" / "é \n.py").read_text() == "deep\n"
    assert not (out / "left").exists()


def test_a_checkout_may_have_any_name(tmp_path):
    odd = tmp_path / "at 12:00 'é\""
    odd.mkdir()
    (odd / "code.py").write_text("committed\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", odd, *words], check=True, env={**os.environ, **NOBODY})
    (odd / "code.py").write_text("changed\n")
    taken = snapshot.take(odd, allow_dirty=True)
    assert unpacked(taken, tmp_path / "out") == "changed\n"


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
        message = cli(*words, f"cluster.allow_dirty={allowed}")
        assert message.stdout and ("must be fixed" in message.stderr) == (allowed == "false")
    assert everything(cli.code / ".git") == before
    assert not (cli.cwd / "runs").exists()


def test_unknown_files_that_are_no_code_are_refused(checkout):
    with open(checkout / "picture.tar", "wb") as file:
        file.truncate(30_000_000)
    with pytest.raises(
        SubmitError, match=r"30 MB .*, the largest is picture\.tar: add them to \.git"
    ):
        snapshot.take(checkout, allow_dirty=True)


def test_a_diff_with_a_secret_of_the_environment_is_refused(checkout, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    (checkout / "code.py").write_text("key = 'planted-secret'\n")
    with pytest.raises(SubmitError, match="AWS_SECRET_ACCESS_KEY") as refused:
        snapshot.take(checkout, allow_dirty=True)
    assert "planted-secret" not in str(refused.value)


def test_a_folder_that_is_no_checkout_is_told_what_to_do(tmp_path):
    with pytest.raises(SubmitError, match="is not a git checkout.*cluster.code=image"):
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
    with pytest.raises(SubmitError, match="git cannot be run .*install git") as refused:
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


def test_a_pod_whose_scratch_would_split_the_path_of_the_code_is_told_so(
    checkout, tmp_path, monkeypatch
):
    data = snapshot.archive(snapshot.take(checkout))
    (tmp_path / "code.tar.gz").write_bytes(data)
    monkeypatch.setattr("tempfile.tempdir", f"{tmp_path}/12:00")
    with pytest.raises(SubmitError, match="TMPDIR=.*12:00: .*split at ':'"):
        bootstrap._unpacked(str(tmp_path / "code.tar.gz"), hashlib.sha256(data).hexdigest())
