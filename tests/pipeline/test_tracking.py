"""A run's record in the embedded store: complete, true about its end, and continued on resume."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline import capture, server, sync
from pipeline.config import SyncConfig
from pipeline.runfolder import read_run_json, update_run_json
from pipeline.spool import Spool, Unsent
from pipeline.tracking import Tracker, clean, flatten

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of runs with an embedded store, and what a killed first use left of another."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / ".mlflow-new.db").write_bytes(b"half a database")
    return folder


def tracker(root, name, **options):
    return Tracker(root / name, root=str(root), experiment="me/recipe", run_name=name, **options)


def client(root):
    return server.connect(server.tracking_uri(str(root)))


def run_of(root, name):
    return client(root).get_run(read_run_json(str(root / name))["mlflow_run_id"])


def steps(root, name, key):
    history = client(root).get_metric_history(run_of(root, name).info.run_id, key)
    return [metric.step for metric in history]


@pytest.fixture(scope="module")
def recorded(root):
    """One run with everything a run may hold."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    (root / "whole").mkdir()
    (root / "whole" / "config.yaml").write_text("batch: 16\n")
    with tracker(root, "whole", sample_every=0.2) as run:
        config = {"batch": 16, "model": {"name": "msanet", "fe": [64, 64]}, "note": "x" * 7000}
        run.start(config, {"recipe": "quick"}, ("places2", "s3://bucket/places2", DIGEST))
        run.artifact(root / "whole" / "config.yaml")
        for step, psnr in ((16, 20.0), (32, 22.5), (48, 21.0)):
            run.metrics({"g/l1": 1 / step, "val/psnr": psnr, "val/l1": 30 - psnr}, step)
        run.metrics({"g/adv": float("nan"), "g/style": float("inf"), "g/tv": 1.0}, 64)
        pixels = np.zeros((300, 200, 3), np.uint8)
        pixels[:150] = (255, 128, 0)
        run.image("val/s00/out", pixels, 48)
        threading.Event().wait(0.5)
    return run_of(root, "whole")


def test_parameters_tags_and_the_dataset_are_recorded(recorded):
    assert recorded.data.params["model.name"] == "msanet"
    assert recorded.data.params["model.fe"] == "[64, 64]"
    assert len(recorded.data.params["note"]) == 6000, "as much as MLflow holds"
    assert recorded.data.tags["recipe"] == "quick"
    (used,) = recorded.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("places2", DIGEST[:32])
    assert {t.key: t.value for t in used.tags}["manifest_sha256"] == DIGEST


def test_the_environment_is_recorded(recorded, root):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if commit.returncode == 0:
        assert recorded.data.tags["mlflow.source.git.commit"]
    assert recorded.data.tags["hardware.torch"].startswith("2.")
    assert int(recorded.data.tags["hardware.cores"]) >= 1
    names = [f.path for f in client(root).list_artifacts(recorded.info.run_id, "environment")]
    assert "environment/packages.txt" in names
    where = client(root).download_artifacts(recorded.info.run_id, "environment/packages.txt")
    assert "\ntorch==" in Path(where).read_text()


def test_the_best_value_of_each_validation_metric_is_kept(recorded):
    metrics = recorded.data.metrics
    assert (metrics["val/psnr"], metrics["best/psnr"], metrics["best/step"]) == (21.0, 22.5, 32)
    assert metrics["best/l1"] == 7.5, "less is better"


def test_non_finite_values_are_counted_not_sent(recorded):
    assert recorded.data.metrics["health/nonfinite"] == 2
    assert recorded.data.metrics["g/tv"] == 1.0
    assert not {"g/adv", "g/style"} & set(recorded.data.metrics)


def test_the_machine_is_sampled_while_training_runs(recorded):
    sampled = {k: v for k, v in recorded.data.metrics.items() if k.startswith("system/0/")}
    assert 0 < sampled["system/0/memory_percent"] < 100
    assert sampled["system/0/process_rss_gb"] > 0.01


@pytest.mark.parametrize(
    ("rank", "local", "keys"),
    [("0", "0", set()), ("3", "3", set()), ("4", "0", {"system/1/"}), ("5", "1", set())],
)
def test_the_first_process_of_every_other_node_samples_its_machine(monkeypatch, rank, local, keys):
    for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    found = capture.other_node_metrics()
    assert {key[: len("system/1/")] for key in found} == keys


def test_pictures_are_recorded_by_step_with_a_thumbnail(recorded, root):
    from PIL import Image

    paths = [f.path for f in client(root).list_artifacts(recorded.info.run_id, "images")]
    (full,) = [path for path in paths if path.endswith(".png")]
    (thumb,) = [path for path in paths if path.endswith("+compressed.webp")]
    assert full.startswith("images/val~s00~out+step+48+timestamp+")
    where = client(root).download_artifacts(recorded.info.run_id, full)
    assert np.asarray(Image.open(where))[10, 10].tolist() == [255, 128, 0]
    with Image.open(client(root).download_artifacts(recorded.info.run_id, thumb)) as small:
        assert max(small.size) == 256
    assert recorded.data.tags["mlflow.loggedImages"] == "True"


def test_the_run_json_names_the_record(recorded, root):
    told = read_run_json(str(root / "whole"))
    assert told["mlflow_run_id"] == recorded.info.run_id
    assert told["mlflow_experiment_id"] == recorded.info.experiment_id
    assert told["mlflow_uri"] == f"sqlite:///{root}/mlflow.db"
    assert recorded.info.artifact_uri.startswith(f"{(root / 'mlartifacts').as_uri()}/")


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (None, "FINISHED", "finished"),
        (RuntimeError("out of memory"), "FAILED", "failed"),
        (KeyboardInterrupt(), "KILLED", "killed"),
        (SystemExit(75), "SCHEDULED", "requeued"),
        (SystemExit(1), "FAILED", "failed"),
    ],
)
def test_the_status_tells_how_training_ended(root, error, status, state):
    name = f"ended-{state}-{error!r}"
    run = tracker(root, name)
    if error is None:
        with run:
            run.start({}, {})
    else:
        with pytest.raises(type(error)), run:
            run.start({}, {})
            raise error
    assert run_of(root, name).info.status == status
    assert run_of(root, name).data.tags["job.state"] == state


def test_a_resumed_run_goes_on_in_the_same_record(root):
    for attempt, (batch, first) in enumerate([(16, 0), (16, 3), (32, 6)], 1):
        with tracker(root, "resumed") as run:
            run.start({"batch": batch, "attempt": "same"}, {"attempt": str(attempt)})
            for step in range(first, first + 3):
                run.metrics({"g/l1": float(step), "val/psnr": 30.0 - attempt}, step)

    found = client(root).search_runs(
        [run_of(root, "resumed").info.experiment_id], "attributes.run_name = 'resumed'"
    )
    assert len(found) == 1
    assert sorted(steps(root, "resumed", "g/l1")) == list(range(9))
    data = run_of(root, "resumed").data
    assert data.params["batch"] == "16"
    assert json.loads(data.tags["resume.3.overrides"]) == {"batch": "32"}
    assert "resume.2.overrides" not in data.tags
    assert data.metrics["best/psnr"] == 29.0, "the best of an earlier attempt stays the best"


def test_a_run_made_at_submit_is_the_one_that_is_recorded(root):
    made = client(root).create_run(server.experiment_id(client(root), f"sqlite:///{root}/mlflow.db",
                                                        "me/submitted"))  # fmt: skip
    with tracker(root, "submitted", run_id=made.info.run_id) as run:
        run.start({"a": 1}, {})
    assert read_run_json(str(root / "submitted"))["mlflow_run_id"] == made.info.run_id
    assert client(root).get_run(made.info.run_id).info.status == "FINISHED"


def test_a_child_of_a_sweep_names_its_parent(root, recorded):
    with tracker(root, "child", parent=recorded.info.run_id) as run:
        run.start({}, {})
    assert run_of(root, "child").data.tags["mlflow.parentRunId"] == recorded.info.run_id


def test_after_a_kill_sync_sends_every_point(root):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline.tracking import Tracker
run = Tracker({str(root / "killed")!r}, experiment="me/recipe", run_name="killed", drain=False)
run.start({{"a": 1}}, {{}})
for step in range(600):
    run.metrics({{"g/l1": step / 7}}, step)
assert "mlflow" not in sys.modules, "a trainer that only spools does not even import it"
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    result = sync.main(SyncConfig(dir=str(root / "killed")))

    assert sorted(steps(root, "killed", "g/l1")) == list(range(600))
    assert (result["left"], result["rejected"]) == (0, 0)
    assert run_of(root, "killed").info.status == "RUNNING", "it may come back"


def test_sending_everything_twice_adds_nothing(root):
    with tracker(root, "twice") as run:
        run.start({"a": 1}, {})
        for step in range(10):
            run.metrics({"g/l1": 0.5}, step)
        run.image("val/s00/out", np.zeros((8, 8, 3), np.uint8), 1)
    folder = root / "twice" / "spool"
    (folder / "cursor.json").unlink()

    sync.main(SyncConfig(dir=str(root / "twice")))

    assert sorted(steps(root, "twice", "g/l1")) == list(range(10))
    found = client(root).search_runs(
        [run_of(root, "twice").info.experiment_id], "attributes.run_name = 'twice'"
    )
    assert len(found) == 1


def test_events_that_the_server_will_never_take_are_set_aside(root):
    with tracker(root, "poisoned") as run:
        run.start({}, {})
        run.metrics({"g/l1": 1.0}, 1)
        run.spool.append("metrics", values={"not % allowed": 1.0}, step=2)
        run.spool.append("nonsense", values=1)
        run.metrics({"g/l1": 3.0}, 3)

    assert sorted(steps(root, "poisoned", "g/l1")) == [1, 3]
    rejected = (root / "poisoned/spool/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in rejected] == ["metrics", "nonsense"]
    assert "not % allowed" in json.loads(rejected[0])["reason"]


def test_a_deleted_run_keeps_its_events_and_says_so(root, capfd):
    with tracker(root, "deleted") as run:
        run.start({}, {})
    client(root).delete_run(run_of(root, "deleted").info.run_id)

    with tracker(root, "deleted") as run:
        run.start({}, {})
        run.metrics({"g/l1": 1.0}, 1)

    assert "was deleted" in capfd.readouterr().err
    assert not (root / "deleted/spool/rejected.jsonl").exists()
    assert Unsent(root / "deleted" / "spool").count() > 0
    with pytest.raises(server.ServerError, match="was deleted"):
        sync.main(SyncConfig(dir=str(root / "deleted")))


def test_sync_names_what_it_was_given_when_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        sync.main(SyncConfig(dir=str(tmp_path)))


def test_sync_watch_sends_what_a_trainer_only_spools_and_ends_on_sigterm(root):
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "sync", str(root / "watched"), "watch=true", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with tracker(root, "watched", drain=False) as run:
            run.start({}, {})
            for step in range(50):
                run.metrics({"g/l1": float(step)}, step)
        waiting = Spool(root / "watched" / "spool")  # a later attempt, a new segment
        waiting.append("metrics", values={"g/l1": 50.0}, step=50)
        waiting.close()
        for _ in range(600):
            if Unsent(root / "watched" / "spool").count() == 0:
                break
            threading.Event().wait(0.1)
    finally:
        watcher.send_signal(signal.SIGTERM)
        out, _ = watcher.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["left"] == 0
    assert sorted(steps(root, "watched", "g/l1")) == list(range(51))
    assert run_of(root, "watched").info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.dist
def test_four_processes_may_use_a_fresh_store_at_once(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline import server
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
    told = [child.communicate("x", timeout=120) for child in children]

    assert [child.returncode for child in children] == [0] * 4, told
    uri = server.tracking_uri(str(tmp_path))
    found = server.connect(uri).get_experiment_by_name("shared")
    assert len(server.connect(uri).search_runs([found.experiment_id])) == 4


def test_creation_of_the_store_may_be_killed_and_begun_again(root, recorded):
    assert recorded.info.status == "FINISHED"
    assert not (root / ".mlflow-new.db").exists()


# --- what a user may get wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["runs", "file:///tmp/mlruns", "htp://host:5000", "http://", "ftp://host", "/tmp/x"]
)
def test_an_address_that_mlflow_cannot_serve_is_refused_with_the_allowed_ones(uri):
    with pytest.raises(server.ServerError, match="http.*sqlite.*unset"):
        server.tracking_uri("runs", uri)


def test_a_password_in_the_address_is_used_but_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    uri = server.tracking_uri("runs", "https://ann:s3cr%40t@mlflow.example:443/base")
    assert uri == "https://mlflow.example:443/base"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr@t"


def test_a_server_that_is_not_there_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(server.ServerError) as caught:
        server.ping(server.connect("http://127.0.0.1:9"), "http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_of_something_else_is_told_apart():
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
        with pytest.raises(server.ServerError, match="not as an MLflow server"):
            server.ping(server.connect(uri), uri)
    finally:
        other.shutdown()
        other.server_close()


def test_a_store_of_another_mlflow_version_is_named_with_the_command(root, recorded, tmp_path):
    copy = tmp_path / "older.db"
    copy.write_bytes((root / "mlflow.db").read_bytes())
    with sqlite3.connect(copy) as database:
        database.execute("update alembic_version set version_num = 'cfd24bdc0731'")
    with pytest.raises(server.ServerError, match="mlflow db upgrade"):
        server.ping(server.connect(f"sqlite:///{copy}"), f"sqlite:///{copy}")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database at all" * 100)
    uri = server.tracking_uri(str(tmp_path))
    with pytest.raises(server.ServerError, match="mlflow.db is damaged"):
        server.ping(server.connect(uri), uri)


def test_required_tracking_fails_at_start_and_not_later(tmp_path):
    run = Tracker(
        tmp_path / "run", uri="http://127.0.0.1:9", experiment="e", run_name="r", required=True
    )
    with pytest.raises(server.ServerError, match="does not answer"):
        run.start({}, {})


def test_two_writers_of_run_json_keep_each_others_keys(tmp_path):
    def write(name):
        for value in range(20):
            update_run_json(str(tmp_path), **{name: value})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_run_json(str(tmp_path)) == {"a": 19, "b": 19, "c": 19}
    assert update_run_json(str(tmp_path), b=None) == {"a": 19, "c": 19}


# --- what leaves the machine ----------------------------------------------------------------------


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
    assert secret not in capture.redact(f"before\n{text}\nafter")


def test_secrets_of_the_environment_are_taken_out_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SITE_DB_PASSWORD", "correct-horse")
    assert capture.redact("psql 'x correct-horse y'") == "psql 'x *** y'"
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
    assert capture.git(tmp_path)[1] == ""
    (tmp_path / "a.py").write_text("x = 2\npassword = 'hunter2hunter2'\n")
    (tmp_path / "new.py").write_text("")

    commit, diff = capture.git(tmp_path)

    assert len(commit) == 40
    assert "+x = 2" in diff and "# untracked: new.py" in diff and "hunter2" not in diff


def test_keys_become_what_mlflow_allows_and_stay_apart():
    keys = ["val/psnr (0.1,0.2]", "val/psnr (0.2,0.3]", "g/l1", "a%b(c)"]
    cleaned = [clean(key) for key in keys]
    assert cleaned == ["val/psnr 0.1_0.2", "val/psnr 0.2_0.3", "g/l1", "a_b_c"]


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
from pipeline.tracking import Tracker
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
