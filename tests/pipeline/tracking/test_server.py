"""A real MLflow server that is killed, or fails behind a proxy: no point is lost, no second run
appears, and of a trainer and `sync` one sends."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.common.environment import user
from pipeline.config.compose import compose
from pipeline.config.schema import SyncConfig
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking import errors, sync
from pipeline.tracking.client import connect, experiment_id, model_link, ping, run_link
from pipeline.tracking.delivery import NOTE
from pipeline.tracking.lifecycle import announce
from pipeline.tracking.spool import Unsent
from pipeline.tracking.tracker import Tracker
from pipeline.training.run_log import description, save_sheet
from shards import store
from tests.support.browser import Page, installed
from tests.support.mlflow_server import FaultProxy, MlflowServer
from tests.support.records import Database, until
from tests.support.trained import finished_run, registered

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    running = MlflowServer(tmp_path_factory.mktemp("server")).start()
    yield running
    running.kill()


@pytest.fixture
def proxy(real):
    between = FaultProxy(real.url)
    yield between
    between.close()


def steps(real, run, key="g/l1"):
    client = connect(real.url)
    history = client.get_metric_history(read_run_json(str(run))["mlflow_run_id"], key)
    return sorted(metric.step for metric in history)


def named(real, name):
    client = connect(real.url)
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, f"attributes.run_name = '{name}'")


def begin(proxy, folder, name):
    run = Tracker(folder / name, uri=proxy.url, experiment="me/faults", run_name=name)
    run.start({"a": 1}, {})
    return run


@pytest.mark.parametrize("fault", ["dead", "500", "401", "403", "slow"])
def test_600_points_arrive_although_the_server_fails_in_the_middle(real, proxy, tmp_path, fault):
    run = begin(proxy, tmp_path, f"fault-{fault}")
    for step in range(200):
        run.metrics({"g/l1": step / 7}, step)
    until(lambda: Unsent(run.folder).count() == 0)
    before = proxy.requests
    proxy.mode, proxy.delay = fault, 1.0
    for step in range(200, 400):
        run.metrics({"g/l1": step / 7}, step)
        if step % 50 == 0:
            run.image("val/s00/out", np.zeros((16, 16, 3), np.uint8), step)
    until(lambda: proxy.requests > before)
    proxy.mode = "ok"
    for step in range(400, 600):
        run.metrics({"g/l1": step / 7}, step)
    run.finish("FINISHED")

    assert steps(real, run.run) == list(range(600))
    (recorded,) = named(real, f"fault-{fault}")
    assert recorded.info.status == "FINISHED"
    assert not (run.folder / "rejected.jsonl").exists(), "no event is poison because of an outage"
    images = connect(real.url).list_artifacts(recorded.info.run_id, "images")
    assert len(images) == 8, "four images with their thumbnails"


def test_a_server_killed_twice_while_a_run_logs_costs_no_point_and_makes_no_second_run(
    real, tmp_path
):
    """kill -9 as soon as the run is in its tables, and again among the points."""
    database = Database(real.folder / "server.db")
    run = Tracker(tmp_path / "killed", uri=real.url, experiment="me/faults", run_name="killed")
    run.start({"a": 1}, {})
    for first, reached in ((0, database.runs), (2000, database.steps)):
        until(lambda reached=reached: reached("killed"))
        real.kill()
        for step in range(first, first + 2000):
            run.metrics({"g/l1": step / 7, "g/tv": 1.0}, step)
        run.image("samples/00/filled", np.zeros((16, 16, 3), np.uint8), first)
        real.start()
    run.finish("FINISHED")

    assert [status for _, status in database.runs("killed")] == ["FINISHED"]
    assert database.steps("killed") == database.steps("killed", "g/tv") == list(range(4000))
    assert not (run.folder / "rejected.jsonl").exists()
    images = (real.folder / "artifacts").glob("*/*/artifacts/images/samples*filled+step*.png")
    assert len(list(images)) == 2


def test_a_server_that_never_answers_leaves_everything_to_sync(real, proxy, tmp_path, capfd):
    proxy.mode = "dead"
    run = begin(proxy, tmp_path, "offline")
    for step in range(50):
        run.metrics({"g/l1": float(step)}, step)
    run.finish("FAILED", wait=0.5)
    output = capfd.readouterr().err
    assert "does not answer" in output
    assert f"python -m pipeline sync {tmp_path / 'offline'}" in output
    assert "mlflow_run_id" not in read_run_json(run.run)

    with pytest.raises(errors.ServerError, match="does not answer"):
        run_sync(proxy, run)
    proxy.mode = "ok"
    run_sync(proxy, run)

    assert steps(real, run.run) == list(range(50))
    assert [r.info.status for r in named(real, "offline")] == ["FAILED"]


def run_sync(proxy, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        return sync.main(SyncConfig(dir=run.run))


def test_a_creation_whose_answer_is_lost_makes_no_second_run(real, proxy, tmp_path):
    experiment_id(connect(real.url), real.url, "me/faults")
    proxy.mode, proxy.only = "lost", "runs/create"
    run = begin(proxy, tmp_path, "ghost")
    until(lambda: len(named(real, "ghost")) > 0)
    proxy.mode = "ok"
    run.metrics({"g/l1": 1.0}, 1)
    run.finish("FINISHED")

    (recorded,) = named(real, "ghost")
    assert recorded.info.run_id == read_run_json(run.run)["mlflow_run_id"]
    assert recorded.info.status == "FINISHED"


def test_an_announcement_whose_answer_is_lost_is_found_by_the_next_submit(
    real, proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    database, run = Database(real.folder / "server.db"), str(tmp_path / "announced")
    config = compose("train", ["experiment=quickstart", f"run={run}"]).config
    experiment_id(connect(proxy.url), proxy.url, f"{user()}/quickstart")
    proxy.mode, proxy.only = "lost", "runs/create"
    with pytest.raises(errors.ServerError):
        announce([config], [run], "job")
    proxy.mode = "ok"

    made = announce([config], [run], "job")[0].mlflow_run
    assert announce([config], [run], "job")[0].mlflow_run == made
    assert database.runs("announced") == [(made, "SCHEDULED")]

    update_run_json(run, mlflow_run_id=made)
    with Tracker(run, uri=proxy.url, experiment="x", run_name="announced") as tracker:
        tracker.start({}, {})
    assert database.runs("announced") == [(made, "FINISHED")]
    store.remove(f"{run}/run.json")
    assert announce([config], [run], "job")[0].mlflow_run != made, (
        "a new run in a folder of the same name"
    )


def test_a_duplicate_run_that_appears_late_is_deleted_when_the_run_ends(real, proxy, tmp_path):
    run = begin(proxy, tmp_path, "twin")
    until(lambda: "mlflow_run_id" in read_run_json(run.run))
    client = connect(real.url)
    experiment = read_run_json(run.run)["mlflow_experiment_id"]
    tags = {"lacuna.uid": run._state["uid"], "mlflow.runName": "twin"}
    client.create_run(experiment, tags=tags)
    assert len(named(real, "twin")) == 2

    run.finish("FINISHED")

    (left,) = named(real, "twin")
    assert left.info.run_id == read_run_json(run.run)["mlflow_run_id"]


def test_a_name_that_the_server_refuses_is_explained(real, proxy):
    proxy.headers = {"Host": "mlflow.cluster.example"}
    with pytest.raises(errors.ServerError, match="--allowed-hosts"):
        ping(connect(proxy.url), proxy.url)


@pytest.mark.parametrize(
    ("status", "words"),
    [("401", "MLFLOW_TRACKING_PASSWORD"), ("403", "EDIT on the experiment"), ("404", "not as an")],
)
def test_a_refusal_is_one_line_that_says_what_to_set(proxy, status, words):
    proxy.mode = status
    with pytest.raises(errors.ServerError, match=words) as caught:
        ping(connect(proxy.url), proxy.url)
    assert "\n" not in str(caught.value)


def test_the_dataset_and_the_artifacts_pass_through_the_server(real, tmp_path):
    run = Tracker(tmp_path / "files", uri=real.url, experiment="me/files", run_name="files")
    run.start({}, {}, ("celeba", "s3://bucket/celeba", "ab" * 32))
    run.artifact("evaluation/out/table.csv", b"a,b\n")
    run.finish("FINISHED")

    client = connect(real.url)
    (recorded,) = named(real, "files")
    assert recorded.info.artifact_uri.startswith("mlflow-artifacts:/")
    where = client.download_artifacts(recorded.info.run_id, "evaluation/out/table.csv")
    assert Path(where).read_text() == "a,b\n"
    (used,) = recorded.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("celeba", "s3")


@pytest.mark.skipif(installed() is None, reason="no Chromium here: apt-get install chromium")
def test_links_open_the_page_of_the_run_and_of_the_version(real, tmp_path):
    run = finished_run(tmp_path / "linked", uri=real.url)
    version = registered(run, real.url)
    info = read_run_json(run)
    link = run_link(real.url, info["mlflow_experiment_id"], info["mlflow_run_id"])
    with Page(link) as page:
        page.until("document.body.innerText.includes('About this run')")
        shown = page.run("document.body.innerText")
        assert info["mlflow_run_id"] in shown and "System metrics" in shown
    with Page(model_link(real.url, version.name, version.version)) as page:
        page.until("document.body.innerText.includes('Registered At')")
        assert "Version 1" in page.run("document.body.innerText")


@pytest.mark.skipif(installed() is None, reason="no Chromium here: apt-get install chromium")
def test_the_contact_sheet_and_the_model_card_are_in_view(real, tmp_path):
    run = finished_run(tmp_path / "seen", uri=real.url)
    sheet = np.full((64, 97, 3), 200, np.uint8)
    tracker = Tracker(run, uri=real.url, experiment="me/recipe", run_name="seen")
    with tracker:
        tracker.start({}, {NOTE: description(compose("train", ["data.url=sets/a"]).config)})
        save_sheet(folder_at(run), tracker, sheet, 1000)
    version = registered(run, real.url)
    info = read_run_json(run)
    overview = run_link(real.url, info["mlflow_experiment_id"], info["mlflow_run_id"])
    pages = {
        overview: "get-artifact?path=samples.png",
        overview.replace("?", "/model-metrics?"): "images",
        model_link(real.url, version.name, version.version): "logged-models",
    }
    for url, source in pages.items():
        with Page(url) as page:
            page.until(f"""[...document.images].some(image => image.naturalWidth == 97
                && image.checkVisibility() && (image.src.startsWith('blob:')
                || image.src.includes({source!r})))""")
            if source == "logged-models":
                shown = page.run("document.body.innerText")
                assert (
                    f'mlflow.pyfunc.load_model("models:/{version.source.rpartition("/")[2]}")'
                    in shown
                )
