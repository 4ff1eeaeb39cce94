"""Find the tracking store of a run, connect to it, and search it.

Without `MLFLOW_TRACKING_URI` it is embedded: `<root>/mlflow.db` (sqlite) and `<root>/mlartifacts`.
mlflow is imported inside functions only, because that takes seconds, and after `telemetry_off()`,
because it decides about telemetry while it is imported.
"""

import functools
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pipeline.common.console import say
from pipeline.runs.run_json import Facts, read_run_json
from pipeline.tracking import database, errors
from pipeline.tracking.errors import HIDDEN, RunDeleted, ServerError, display_uri, explained
from shards import store

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.sshfs")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",  # else a server downloads a catalog of models
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else `uv export` runs where there is a uv.lock
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def telemetry_off() -> None:
    """Turn off the telemetry of all libraries. Call it before they are imported."""
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def load_mlflow() -> None:
    """Import ahead of time what `connect` and a Tracker need."""
    telemetry_off()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import PIL.Image  # noqa: F401


def no_retries() -> None:
    """Keep MLflow's client from repeating requests: a repeated creation leaves a second run.

    For callers that retry themselves, after looking for what the first request made.
    """
    telemetry_off()
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"


def tracking_uri(root: str = "runs", uri: str | None = None) -> str:
    """Return the URI in force: `uri`, else the environment's, else sqlite under `root`.

    A user name and password in it move to MLflow's own variables, so that the URI can be shown.
    Raises ServerError for a malformed URI and for a scheme that MLflow cannot serve.
    """
    given = store.expanded(uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    if not given:
        return f"sqlite:///{Path(root).absolute()}/mlflow.db"
    shown = display_uri(given)
    parts = urlsplit("" if shown == HIDDEN else given)
    if parts.scheme.partition("+")[0] not in SCHEMES or (
        parts.scheme.startswith("http") and not parts.hostname
    ):
        raise ServerError(
            f"MLFLOW_TRACKING_URI={shown} cannot be used: give http(s)://HOST:PORT (with / and @ "
            "in a user name or password as %2F and %40), sqlite:////ABSOLUTE/mlflow.db, or leave "
            "it unset for the embedded default"
        )
    if parts.scheme.startswith("http") and parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        given = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        if "MLFLOW_TRACKING_URI" in os.environ and not uri:
            os.environ["MLFLOW_TRACKING_URI"] = given
    return given


def default_root(run: str) -> str:
    """Return the folder of the embedded store for `run`.

    For a local run: the nearest folder above it that has a store, else `runs` if the run is below
    it, else the run's parent. For a remote run: `runs`.
    """
    if not store.is_local(run):
        return "runs"
    above, usual = store.local(run).absolute().parents, Path("runs").absolute()
    return str(next(_above(run), usual if usual in above else above[0]))


def uri_for(
    run: str | None, root: str | None = None, uri: str | None = None, known: Facts | None = None
) -> str:
    """Return the tracking URI of a run: `uri`, the environment's, that of `run.json`, embedded.

    run: folder or URL, or None where only `root` is known. known: its `run.json`, if read. If the
    embedded store that it names does not hold the run, one above the run is used: both may have
    moved.
    """
    if uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or run is None:
        return tracking_uri(root or "runs", uri)
    known = read_run_json(run) if known is None else known
    recorded, mlflow_run = known.get("mlflow_uri"), known.get("mlflow_run_id")
    if recorded and (path := sqlite_path(recorded)) and not _holds(path, mlflow_run):
        root = next((f for f in _above(run) if _holds(Path(f, "mlflow.db"), mlflow_run)), None)
        recorded = None if root or not mlflow_run else recorded
    return tracking_uri(root or default_root(run), recorded)


def _above(run: str) -> Iterator[str]:
    """Yield the folders above a local run that have an embedded store, the nearest first."""
    for folder in store.local(run).absolute().parents if store.is_local(run) else ():
        if (folder / "mlflow.db").exists():
            yield str(folder)


def _holds(database: Path, mlflow_run: str | None) -> bool:
    """Return whether a sqlite file exists and holds the MLflow run, if there is one."""
    if mlflow_run is None or not database.exists():
        return database.exists()
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as opened:
        found = opened.execute("select 1 from runs where run_uuid = ?", (mlflow_run,))
        return found.fetchone() is not None
    return False


def connect(uri: str, make: bool = True, run: str | None = None) -> Any:
    """Return an MlflowClient for `uri`, which comes from `tracking_uri`.

    A missing sqlite file is created, or refused without `make` and where `run` has an MLflow run
    already. Raises ServerError if a database cannot be used. No request is sent to a server
    yet: see `ping`.
    """
    telemetry_off()
    if path := sqlite_path(uri):
        warn_of_network(path)
        recorded = run and read_run_json(run).get("mlflow_run_id")
        if (recorded or not make) and not path.exists():
            lost = f"it held MLflow run {recorded}: move mlflow.db back, or above the run; or"
            why = lost if recorded else "nothing was trained or registered from here;"
            fix = "set MLFLOW_TRACKING_URI, or run the command in the folder that holds runs/"
            fix += errors.databases_below(path)
            raise ServerError(f"no MLflow data at {uri}: {why} {fix}")
        try:
            database.create(path)
        except OSError as error:
            raise ServerError(
                f"{uri} cannot be created ({error.strerror}): check the folder's permissions and "
                "space, or set root= or MLFLOW_TRACKING_URI"
            ) from None
    elif not uri.startswith("http"):
        with explained(uri):
            database.reach(uri)
    import mlflow

    # MLflow's stores look each other up by the process's URI, not by the client's. Setting it also
    # exports it, which would make a default look like the user's choice.
    exported = os.environ.get("MLFLOW_TRACKING_URI")
    with explained(uri):
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if exported is not None:
            os.environ["MLFLOW_TRACKING_URI"] = exported
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if path:
            database.follow_move(path)
        return client


def ping(client: Any, uri: str) -> None:
    """Send one cheap authenticated request; ServerError if it fails."""
    with explained(uri):
        client.search_experiments(max_results=1)


def recorded_run(client: Any, run_id: str) -> Any:
    """Return the MLflow run that a `run.json` names; RunDeleted if the server does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        raise RunDeleted(
            f"MLflow run {run_id} was deleted on {display_uri(client.tracking_uri)}, or is another "
            "server's: restore it there, set MLFLOW_TRACKING_URI to its server, or remove spool/ "
            "and mlflow_run_id from run.json to record a new one"
        )
    return run


def experiment_id(client: Any, uri: str, name: str) -> str:
    """Return the experiment's id; create it if needed, also from several processes at once."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        path = sqlite_path(uri)
        # The location of artifacts is fixed at creation; a server chooses its own.
        location = database.artifacts(path) if path else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        raise ServerError(
            f"experiment {name!r} was deleted in MLflow: restore it there, or choose another with "
            "tracking.experiment="
        )
    return experiment.experiment_id


def search(method: Callable[..., Any], *args: Any, **query: Any) -> list[Any]:
    """Return all results of a search method of MlflowClient, which itself returns one page."""
    from mlflow.utils import get_results_from_paginated_fn

    def page(count: int, token: str | None) -> Any:
        return method(*args, **query, max_results=count, page_token=token)

    return get_results_from_paginated_fn(page, 1000)


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a sqlite URI's database; None for another URI."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.partition(":///")[2]).absolute()


def run_link(uri: str, experiment: str, run: str) -> str:
    """Return the UI page of a run."""
    return _ui(uri, f"experiments/{quote(experiment)}/runs/{run}")


def model_link(uri: str, name: str, version: str) -> str:
    """Return the UI page of a registered model version."""
    return _ui(uri, f"models/{quote(name)}/versions/{version}")


def _ui(uri: str, page: str) -> str:
    """Return a page of the UI; without workflowType the page for language models opens."""
    server = "http://127.0.0.1:5000" if uri.startswith("sqlite") else display_uri(uri).rstrip("/")
    return f"{server}/#/{page}?workflowType=machine_learning"


def ui_command(uri: str) -> str:
    """Return the address of the UI, after the command that serves an embedded store."""
    page = _ui(uri, "experiments")
    if not uri.startswith("sqlite"):
        return page
    command = shutil.which("mlflow") and "mlflow" or str(Path(sys.executable).parent / "mlflow")
    command = f"MLFLOW_DISABLE_TELEMETRY=true {command} server --backend-store-uri {uri}"
    return f"{command} --port 5000\n  then open {page}"


@functools.cache
def warn_of_network(path: Path) -> None:
    """Warn once, on stderr, about a sqlite file on a network disk."""
    kind = disk_of(path)
    if kind.startswith(NETWORK):
        say(
            f"tracking: {path} is on {kind}, where sqlite breaks under several jobs: set "
            "MLFLOW_TRACKING_URI to a server (jobs/deploy/server), or root= to a disk of this node"
        )


def disk_of(path: Path) -> str:
    """Return the type of the file system that holds `path`, "" if it is unknown."""
    import psutil

    where = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if where.is_relative_to(m.mountpoint)]
    mounts.sort(key=lambda mount: len(mount.mountpoint))  # stable: the later of two at one place
    return mounts[-1].fstype if mounts else ""
