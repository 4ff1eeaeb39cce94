"""Folders of the account: `~` in what a user gives, and an account that has no home."""

import pytest

from pipeline.common.environment import cache_dir, config_dir
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


def test_a_leading_tilde_is_the_home_folder_in_variables_too(home, monkeypatch):
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LACUNA_CONF"):
        monkeypatch.setenv(name, "~/site")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/m.db")
    assert cache_dir() == config_dir() == home / "site" / "lacuna"
    assert ("site", home / "site") in search_folders()
    assert tracking_uri() == f"sqlite:///{home}/m.db"
