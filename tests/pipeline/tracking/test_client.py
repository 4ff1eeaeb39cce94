"""Where MLflow is: the embedded store's first use, and one line for each way to miss a server."""

import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.common.errors import ConfigError
from pipeline.common.secrets import redact, refuse_secret
from pipeline.runs.run_json import update_run_json
from pipeline.tracking import client, errors
from pipeline.tracking.client import disk_of
from pipeline.tracking.tracker import Tracker
from tests.support.mlflow_server import free_port

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
@pytest.mark.dist
def test_four_processes_may_use_a_fresh_store_at_once(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline.tracking import client as server
uri = server.tracking_uri({str(tmp_path)!r})
client = server.connect(uri)
sys.stdin.read(1)
experiment = server.experiment_id(client, uri, "shared")
print(client.create_run(experiment).info.run_id)
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(4)
    ]
    outputs = [child.communicate("x", timeout=120) for child in children]

    assert [child.returncode for child in children] == [0] * 4, outputs
    uri = client.tracking_uri(str(tmp_path))
    experiment = client.connect(uri).get_experiment_by_name("shared")
    assert len(client.connect(uri).search_runs([experiment.experiment_id])) == 4


@pytest.mark.parametrize(
    "uri", ["runs", "file:///tmp/mlruns", "htp://host:5000", "http://", "ftp://host", "/tmp/x"]
)
def test_an_address_that_mlflow_cannot_serve_is_refused_with_the_allowed_ones(uri):
    with pytest.raises(errors.ServerError, match="http.*sqlite.*unset"):
        client.tracking_uri("runs", uri)


# Row 59
@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:s3cret@host:5000/base", "http://host:5000/base"),
        ("https://s3cret@host", "https://host"),
        ("postgresql+psycopg://ann:s3cret@host:5432/db", "postgresql+psycopg://host:5432/db"),
        ("http://ann:p@ss:s3cret@[::1]:5000", "http://[::1]:5000"),
        ("http://host/base?token=s3cret#s3cret", "http://host/base"),
        ("ann:s3cret@host:5000", "host:5000"),
        ("http:ann:s3cret@host", "host"),
        ("http://ann:s3/cret@host", "***"),
        ("http://ann:s3?cret@host", "***"),
        ("http://ann:s3#cret@host", "***"),
        ("http://12:34/s3cret@host", "***"),
        ("http://ann:s3cret", "***"),
        ("http://host?token=s3c@ret", "***"),
        ("http://ann:s3cret@[::1", "***"),
        ("ann:s3cret@http://host", "***"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)
def test_a_password_is_never_shown_however_malformed_the_address_is(monkeypatch, uri, shown):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert errors.display_uri(uri) == shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if shown == "***":
        with pytest.raises(errors.ServerError, match=r"=\*\*\* cannot be used: .*%2F") as caught:
            client.tracking_uri()
        for part in ("s3", "cret"):
            assert part not in str(caught.value)


def test_a_run_that_was_moved_with_its_store_is_found_at_its_new_place(tmp_path, blank_store):
    run = tmp_path / "new" / "run"
    update_run_json(str(run), mlflow_uri=f"sqlite:///{tmp_path}/old/mlflow.db")
    shutil.copy(blank_store, tmp_path / "new" / "mlflow.db")
    assert client.uri_for(str(run)) == f"sqlite:///{tmp_path}/new/mlflow.db"
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    assert client.uri_for(str(run)) == f"sqlite:///{tmp_path}/old/mlflow.db"


def test_a_password_in_the_address_is_used_but_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    uri = client.tracking_uri("runs", "https://ann:s3cr%40t@mlflow.example:443/base")
    assert uri == "https://mlflow.example:443/base"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr@t"


# Row 59
@pytest.mark.parametrize(
    "text",
    [
        "Failed to parse: http://ann:s3/cret@host",
        "git+ssh://ann:s3cret@host/x.git",
        "url='https://ann:12345s3cret@host:80'",
    ],
)
def test_a_password_of_an_address_is_removed_from_other_text(text):
    assert "cret" not in redact(text) and "host" in redact(text)
    with pytest.raises(ConfigError, match="data.url holds a secret"):
        refuse_secret("data.url", text)


def test_an_image_of_a_registry_with_a_port_is_not_a_password():
    image = "docker://registry.example:5000/lacuna@sha256:0123"
    assert redact(image) == image
    refuse_secret("cluster.image", image)


def test_an_unreachable_server_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(errors.ServerError) as caught:
        client.ping(client.connect("http://127.0.0.1:9"), "http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("mysql://ann:s3cret@127.0.0.1:{port}/x", r"needs a package .*MySQLdb.*mysql\+"),
        ("mssql://ann:s3cret@127.0.0.1:{port}/x", r"needs a package .*pyodbc"),
        ("postgresql+none://ann:s3cret@127.0.0.1:{port}/x", r"cannot be used \(.*postgresql\.none"),
        (
            "postgresql://ann:s3cret@127.0.0.1:{port}/x",
            r"cannot be used \(.*refused.*: start the da",
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_named_after_one_attempt(uri, line, monkeypatch):
    if "needs a package" not in line:
        pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    for driver in ("MySQLdb", "pyodbc"):
        monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("tried again"))
    with pytest.raises(errors.ServerError, match=line) as caught:
        client.connect(uri.format(port=free_port()))
    assert str(caught.value).startswith(uri.partition(":")[0]) and "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_not_mlflow_is_named():
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<html>welcome</html>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{other.server_port}"
    try:
        with pytest.raises(errors.ServerError, match="not as an MLflow server"):
            client.ping(client.connect(uri), uri)
    finally:
        other.shutdown()
        other.server_close()


@pytest.mark.parametrize("revision", ["cfd24bdc0731", "ffffffffffff"])
def test_a_store_of_an_older_or_newer_mlflow_is_named_with_the_command(
    blank_store, verb, tmp_path, revision
):
    """An early revision of MLflow's own, and one that this MLflow does not know."""
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("update alembic_version set version_num = ?", (revision,))
    done = verb("runs", f"root={tmp_path}", env={"MLFLOW_TRACKING_URI": ""})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "mlflow db upgrade sqlite:///" in done.stderr


def test_a_file_that_is_not_a_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database at all" * 100)
    uri = client.tracking_uri(str(tmp_path))
    with pytest.raises(errors.ServerError, match="mlflow.db is damaged"):
        client.ping(client.connect(uri), uri)


def test_a_folder_where_no_database_can_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    uri = client.tracking_uri(str(tmp_path / "file"))
    with pytest.raises(errors.ServerError, match=r"file/mlflow.db cannot be created \(.*\): check"):
        client.connect(uri)


def test_required_tracking_fails_at_start_and_not_later(tmp_path):
    run = Tracker(
        tmp_path / "run", uri="http://127.0.0.1:9", experiment="e", run_name="r", required=True
    )
    with pytest.raises(errors.ServerError, match="does not answer"):
        run.start({}, {})


@pytest.mark.slow
def test_nothing_is_reached_but_the_server(tmp_path):
    """Every connection and every name that is looked up, from import to finish."""
    code = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
for name in ("CI", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.pop(name, None)
asked = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        where = args[1] if event == "socket.connect" else args[0]
        if isinstance(where, (tuple, str)) and "/" not in str(where):
            asked.append(str(where))
            raise OSError("the network is closed")
sys.addaudithook(hook)
import numpy as np
from pipeline.tracking.tracker import Tracker
with Tracker({str(tmp_path / "runs" / "r")!r}, experiment="e", run_name="r") as run:
    run.start({{"a": 1}}, {{}}, ("set", "/data", "0" * 64))
    run.metrics({{"g/l1": 1.0}}, 1)
    run.image("a", np.zeros((4, 4, 3), np.uint8), 1)
import mlflow, mlflow.pyfunc, mlflow.pytorch, accelerate, hydra, webdataset, torch
from mlflow.telemetry.client import get_telemetry_client
print(json.dumps({{"asked": asked, "client": get_telemetry_client() is not None}}))
"""
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **home}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"asked": [], "client": False}
    assert not list(tmp_path.rglob("telemetry.json"))


MOUNTS = [
    ("/", "ext4"),
    ("/home", "nfs4"),
    ("/home/ann/my runs", "lustre"),
    ("/home/local", "xfs"),
    ("/tmp", "overlay"),
    ("/tmp", "tmpfs"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/ann/mlflow.db", "nfs4"),
        ("/home/ann/my runs/mlflow.db", "lustre"),
        ("/home/local/mlflow.db", "xfs"),
        ("/homes/mlflow.db", "ext4"),
        ("/tmp/mlflow.db", "tmpfs"),
    ],
)
def test_the_disk_of_a_path_is_the_last_mount_at_its_nearest_mount_point(monkeypatch, path, kind):
    mounts = [SimpleNamespace(mountpoint=point, fstype=fstype) for point, fstype in MOUNTS]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert disk_of(Path(path)) == kind


def test_the_disk_is_the_one_that_stat_names(tmp_path):
    if shutil.which("findmnt") is None:
        pytest.skip("findmnt is not installed")
    for folder in (tmp_path, Path("/proc/self"), Path("/etc/hosts")):  # in a container a bind mount
        done = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", folder], capture_output=True)
        assert disk_of(folder) == done.stdout.decode().splitlines()[-1].strip()


def test_a_store_on_a_network_disk_is_warned_of_once(tmp_path, monkeypatch, capsys):
    """As if tmp_path's own kind of disk were a network's: no such disk can be mounted here."""
    monkeypatch.setattr(client, "NETWORK", (disk_of(tmp_path),))
    uri = client.tracking_uri(str(tmp_path))
    for _ in range(2):
        client.connect(uri)
    output = capsys.readouterr().err
    assert output.count("sqlite breaks under several jobs: set MLFLOW_TRACKING_URI") == 1
    assert str(tmp_path / "mlflow.db") in output


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("2.0/mlflow/runs/create", "EDIT on the experiment"),
        ("2.0/mlflow-artifacts/artifacts/1/x", "EDIT on the experiment"),
        ("2.0/mlflow/registered-models/alias", "MANAGE on the registered model"),
        ("2.0/mlflow/model-versions/create", "MANAGE on the registered model"),
    ],
)
def test_a_403_names_the_permission_that_the_endpoint_needs(endpoint, words):
    """The words of MLflow 3.17's client for an answer 403 of its basic-auth app."""
    from mlflow.exceptions import MlflowException

    text = (
        f"API request to endpoint /api/{endpoint} failed with error code 403 != 200. "
        "Response body: 'Permission denied'"
    )
    line = errors.explain(MlflowException(text), "http://mlflow.example")
    assert words in line and endpoint.rsplit("/", 1)[-1] in line


@pytest.fixture
def private_certificate(tmp_path):
    """A TLS context of a server whose certificate no public authority has signed; its file."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    words += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", *words.split(), "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


# Row 58
@pytest.mark.parametrize(
    ("tls", "trusted", "message"),
    [
        (True, False, "MLFLOW_TRACKING_SERVER_CERT_PATH to its CA"),
        (True, True, "error code 501"),  # of the server: the connection was made
        (False, False, "does not speak TLS: give http:// instead of https://"),
    ],
)
def test_a_fault_of_tls_is_named_with_its_fix(
    private_certificate, monkeypatch, tls, trusted, message
):
    context, certificate = private_certificate
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    if tls:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    if trusted:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"https://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(errors.ServerError, match=message), errors.explained(uri):
            client.connect(uri).search_experiments()
    finally:
        server.shutdown()
        server.server_close()
