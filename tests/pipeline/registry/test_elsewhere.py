"""`register` at another server than the one that tracked the run, and at servers it cannot use."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.config.schema import RegisterConfig
from pipeline.registry import register
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import model_versions
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.errors import ServerError, explained
from tests.support.mlflow_server import MlflowServer
from tests.support.trained import SIMPLE, finished_run


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    running = MlflowServer(tmp_path_factory.mktemp("company")).start()
    yield running
    running.kill()


# Row 50
@pytest.mark.slow
@pytest.mark.dist
def test_a_run_of_a_laptop_is_registered_at_the_companys_server(
    company, root, monkeypatch, capsys, tmp_path
):
    run = finished_run(root / "mine", uri=tracking_uri(str(root)), model=SIMPLE)
    first = read_run_json(run)["mlflow_run_id"]
    connect(company.url).create_experiment("of a stranger")  # has the number of ours
    monkeypatch.setenv("MLFLOW_TRACKING_URI", company.url)
    made = register.main(RegisterConfig(run=run))
    assert f"MLflow run {first} at sqlite:///{root}/mlflow.db is not at" in capsys.readouterr().err
    client = connect(company.url)
    version = client.get_model_version(made["name"], str(made["version"]))
    assert version.tags["lacuna.tracked"] == f"{first} at sqlite:///{root}/mlflow.db"
    assert not version.run_id and first in version.description
    logged = client.get_logged_model(made["model_id"])
    experiment = client.get_experiment(logged.experiment_id)
    assert experiment.name.endswith("/registered") and not logged.source_run_id
    model_versions.download(company.url, made["model_id"], "", tmp_path / "copy")
    assert list((tmp_path / "copy").rglob("inpainter.pt2"))

    # One of this server that was deleted here, and one that is here.
    gone = finished_run(root / "gone", seed=1, uri=company.url, model=SIMPLE)
    client.delete_run(read_run_json(gone)["mlflow_run_id"])
    assert register.main(RegisterConfig(run=gone))["version"] == 2
    here = finished_run(root / "here", seed=2, uri=company.url, model=SIMPLE)
    client.rename_experiment(read_run_json(here)["mlflow_experiment_id"], "renamed")
    made = register.main(RegisterConfig(run=here))
    logged = client.get_logged_model(made["model_id"])
    assert logged.source_run_id == read_run_json(here)["mlflow_run_id"]
    assert logged.experiment_id == read_run_json(here)["mlflow_experiment_id"]


class Older(BaseHTTPRequestHandler):
    """A 2.x server: Flask's page for a path that it does not have, and no experiment or model."""

    asked: list[str] = []

    def answer(self):
        self.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = "logged-models" not in self.path
        page = b"<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n"
        body = json.dumps({}).encode() if known else page
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def older(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Older)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Older.asked.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# Row 67
def test_a_server_without_logged_models_is_named_before_anything_is_created(root, older):
    run = finished_run(root / "mine")
    with pytest.raises(ServerError, match="older than MLflow 3.*logged models") as caught:
        register.main(RegisterConfig(run=run))
    assert older in str(caught.value) and "\n" not in str(caught.value)
    assert Older.asked and all("logged-models" in request for request in Older.asked), Older.asked


@pytest.mark.parametrize("call", ["get_logged_model", "create_logged_model"])
def test_whatever_asks_for_logged_models_says_so(older, call):
    with pytest.raises(ServerError, match="older than MLflow 3"), explained(older):
        getattr(connect(older), call)("1")


# Row 63
@pytest.mark.parametrize(
    ("name", "number"),
    [("models:/many@champion", "7"), ("models:/many/7", "7"), ("models:/many", "12"),
     ("models:/many/latest", "12")],
)  # fmt: skip
def test_a_version_is_looked_up_without_a_list_of_all(root, monkeypatch, name, number):
    client = connect(tracking_uri(str(root)))
    client.create_registered_model("many")
    for _ in range(12):
        client.create_model_version("many", "s3://bucket/model")
    client.set_registered_model_alias("many", "champion", "7")
    listed = []
    search = client.search_model_versions
    monkeypatch.setattr(
        client,
        "search_model_versions",
        lambda *a, **k: listed.append(k["max_results"]) or search(*a, **k),
    )
    assert str(model_versions.find_version(client, name).version) == number
    assert sum(listed) <= 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("models:/many/77", "no version 77 at .*; it has 1, 2"),
        ("models:/many@staging", "no alias 'staging' at .*; it has champion"),
        ("models:/few", "no registered model 'few' at .*; there are: many"),
        ("models:/few@champion", "no registered model 'few'"),
        ("models:/few/1", "no registered model 'few'"),
    ],
)
def test_what_is_missing_is_answered_with_what_there_is(root, name, words):
    client = connect(tracking_uri(str(root)))
    client.create_registered_model("many")
    for _ in range(2):
        client.create_model_version("many", "s3://bucket/model")
    client.set_registered_model_alias("many", "champion", "1")
    with pytest.raises(ValueError, match=words):
        model_versions.find_version(client, name)


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_model_names_the_databases_one_folder_down(tmp_path, monkeypatch, exists):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    there = tmp_path / "runs" / "quickstart" / "mlflow.db"
    connect(f"sqlite:///{there}")  # makes it
    uri = tracking_uri(str(tmp_path / "runs"))
    if exists:
        connect(uri)
    with pytest.raises(ValueError, match="no (registered model|MLflow data)") as missing:
        model_versions.find_version(connect(uri, make=False), "models:/photos")
    assert f"one folder down: MLFLOW_TRACKING_URI=sqlite:///{there})" in str(missing.value)
