"""Folders of the account: `~` in what a user gives, and an account that has no home."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from pipeline.common.environment import cache_dir, config_dir, ensure_account
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose, search_folders
from pipeline.tracking.client import tracking_uri


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home of the account, in whose configuration `root` is `~/runs`."""
    home = tmp_path / "home"
    (home / ".config" / "lacuna").mkdir(parents=True)
    (home / ".config" / "lacuna" / "defaults.yaml").write_text("root: ~/runs\n")
    (home / "old").mkdir()
    (home / "old" / "config.yaml").write_text("seed: 7\n")
    (home / "site").mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LACUNA_CONF", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return home


# Row 53
@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        ("runs", [], "root", "HOME/runs"),
        ("masks", ["out=~/m"], "out", "HOME/m"),
        ("masks", ["out='~/my masks'"], "out", "HOME/my masks"),
        ("masks", ["out=file://~/m"], "out", "HOME/m"),
        ("masks", ["out=file:///~/m"], "out", "HOME/m"),
        ("masks", ["out=a~/m"], "out", "a~/m"),
        ("masks", ["out=s3://b/~/m"], "out", "s3://b/~/m"),
        ("train", ["data.url=~"], "data.url", "HOME"),
        ("train", ["config=~/old/config.yaml"], "seed", 7),
        ("train", ["run=~/old"], "seed", 7),
        ("compare", ["runs=['~/a',b]"], "runs", ["HOME/a", "b"]),
        ("submit", ["cluster=slurm", "cluster.mounts=['~/d:/d']"], "cluster.mounts", ["HOME/d:/d"]),
        ("submit", ["cluster=slurm", "cluster.setup=['~/x']"], "cluster.setup", ["~/x"]),
    ],
)
def test_a_leading_tilde_is_the_home_folder_in_every_path_but_in_lines_for_a_shell(
    home, command, words, key, value
):
    found = compose(command, words).config
    for name in key.split("."):
        found = getattr(found, name)
    expected = value if isinstance(value, int) else eval(repr(value).replace("HOME", str(home)))
    assert found == expected


# Row 53
def test_a_leading_tilde_is_the_home_folder_in_variables_too(home, monkeypatch):
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LACUNA_CONF"):
        monkeypatch.setenv(name, "~/site")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/m.db")
    assert cache_dir() == config_dir() == home / "site" / "lacuna"
    assert ("site", home / "site") in search_folders()
    assert tracking_uri() == f"sqlite:///{home}/m.db"


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A uid without an entry in passwd, and none of the variables that a login sets."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("USER", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "LOGNAME"):  # set first, so that both are restored
        monkeypatch.setenv(name, "")
        del os.environ[name]
    return tmp_path / f"lacuna-{os.getuid()}"


# Row 54
@pytest.mark.parametrize(
    ("command", "status"), [(("runs", "root=none"), 2), (("fetch", "none"), 2), (("doctor",), 0)]
)
def test_an_account_without_a_home_uses_a_private_folder(verb, nobody, tmp_path, command, status):
    done = verb(*command, cwd=tmp_path)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert str(nobody) in done.stderr.splitlines()[0]
    assert nobody.stat().st_mode & 0o777 == 0o700


# Row 54
def test_libraries_find_home_and_name_of_an_account_without_them(nobody):
    ensure_account()
    assert Path.home() == nobody and cache_dir() == nobody / ".cache" / "lacuna"
    assert getpass.getuser() == str(os.getuid())


def test_a_private_folder_of_another_account_is_not_used(nobody, monkeypatch):
    nobody.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    nobody.rename(nobody.with_name("lacuna-12345"))
    with pytest.raises(ConfigError, match="another account's: set HOME"):
        ensure_account()
