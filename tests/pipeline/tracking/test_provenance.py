"""What a run was made of, and nothing secret among it."""

import subprocess

import pytest

from pipeline.common import secrets
from pipeline.tracking import provenance
from pipeline.tracking.delivery import flatten


@pytest.mark.parametrize(
    ("rank", "local", "keys"),
    [("0", "0", set()), ("3", "3", set()), ("4", "0", {"system/1/"}), ("5", "1", set())],
)
def test_the_first_process_of_every_other_node_samples_its_machine(monkeypatch, rank, local, keys):
    for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    sampled = provenance.other_node_metrics()
    assert {key[: len("system/1/")] for key in sampled} == keys


def test_a_job_is_named_by_what_its_scheduler_set(monkeypatch):
    names = {"SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2",
             "POD_NAME": "train-0", "POD_NAMESPACE": "vision", "NODE_NAME": "node17"}  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    tags, files = provenance.environment()
    names = ("slurm.job_id", "slurm.array_task_id", "slurm.restart_count", "pod.name")
    assert [tags[name] for name in names] == ["4711", "3", "2", "train-0"]
    assert (tags["pod.namespace"], tags["pod.node"]) == ("vision", "node17")
    assert "\ntorch==" in files["environment/packages.txt"]


def test_a_snapshot_is_what_submit_took_whatever_checkout_lies_around_it(monkeypatch, tmp_path):
    diff = tmp_path / "0123.diff"
    diff.write_bytes(b"+x = 2\n+caf\xe9\n+password = 'hunter2hunter2'\n")
    monkeypatch.setenv("LACUNA_COMMIT", "c" * 40)
    monkeypatch.setenv("LACUNA_IMAGE", "registry/lacuna@sha256:0")
    tags, files = provenance.environment()
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert (tags["git.dirty"], tags["image.digest"]) == ("false", "registry/lacuna@sha256:0")
    assert "environment/uncommitted.patch" not in files
    for place, line in ((diff, "+x = 2\n"), (tmp_path / "gone", f"# {tmp_path}/gone cannot be")):
        monkeypatch.setenv("LACUNA_DIFF", str(place))
        tags, files = provenance.environment()
        assert tags["git.dirty"] == "true"
        patch = files["environment/uncommitted.patch"]
        assert patch.startswith(line) and "hunter2" not in patch


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("+aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCY", "wJalrXUtnFEMIK7MDENGbPxRfiCY"),
        ("id: AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ('-    "api_key": "f00dcafe12345678",', "f00dcafe12345678"),
        ("remote https://ann:hunter22@git.example/x.git", "hunter22"),
        ("export HF_TOKEN=hf_abcdefghijklmnopqrstuv", "hf_abcdefghijklmnopqrstuv"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30", "eyJhbGciOiJIUzI1NiJ9.e30"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ],
)
def test_secrets_are_taken_out_of_a_diff(text, secret):
    assert secret in text
    assert secret not in secrets.redact(f"before\n{text}\nafter")


def test_secrets_of_the_environment_are_taken_out_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SITE_DB_PASSWORD", "correct-horse")
    assert secrets.redact("psql 'x correct-horse y'") == "psql 'x *** y'"
    assert flatten({"data": {"url": "correct-horse"}, "s3_secret": "abc"}) == {
        "data.url": "***",
        "s3_secret": "***",
    }


def test_an_uncommitted_change_is_captured_and_scanned(tmp_path):
    def git(*words):
        name = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("config", "diff.external", "true")  # which prints nothing
    assert provenance.git(tmp_path)[1] == ""
    (tmp_path / "a.py").write_text("x = 2\npassword = 'hunter2hunter2'\n")
    (tmp_path / "new.py").write_text("")

    commit, diff = provenance.git(tmp_path)

    assert len(commit) == 40
    assert "+x = 2" in diff and "# untracked: new.py" in diff and "hunter2" not in diff


# Row 47
def test_an_unknown_state_of_git_is_recorded_as_unknown(tmp_path, capsys):
    """Outside a repository; the same holds for one of another user and without git."""
    assert provenance.git(tmp_path) == (None, None)
    tags, files = provenance.environment(tmp_path)
    assert tags["git.dirty"] == "unknown" and "mlflow.source.git.commit" not in tags
    assert "environment/uncommitted.patch" not in files
    assert capsys.readouterr().err.splitlines()[0].startswith("tracking: commit and uncommitted")


# Row 47
@pytest.mark.parametrize("reason", ["no git", "another owner"])
def test_a_checkout_that_git_cannot_read_is_unknown(tmp_path, monkeypatch, reason):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if reason == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for its tests
    assert provenance.git(tmp_path) == (None, None)
