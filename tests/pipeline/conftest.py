"""Servers for the tests of this folder, and an embedded tracking store."""

import shutil

import pytest

from tests.support.s3 import _proxy, bucket, faults, moto  # noqa: F401


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory):
    """mlflow.db of a fresh store; copied for each test, for making it takes long."""
    from pipeline.tracking import client

    folder = tmp_path_factory.mktemp("blank")
    client.connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def root(blank_store, tmp_path, monkeypatch):
    """An empty folder of runs with an embedded store, below the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(blank_store, folder / "mlflow.db")
    return folder
