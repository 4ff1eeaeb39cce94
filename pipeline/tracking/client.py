"""Where MLflow is, how it is reached, and what its errors mean in one line.

Without `MLFLOW_TRACKING_URI` it is embedded: `<root>/mlflow.db` (sqlite) and `<root>/mlartifacts`.
mlflow is imported inside functions only (it takes seconds) and never before `telemetry_off()`:
it decides about telemetry while it is imported.
"""

import fcntl
import functools
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pipeline.runs.run_json import read_run_json
from pipeline.tracking.errors import ServerError, display_uri, explained
from shards import store

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.sshfs")


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",  # else a server fetches a catalogue from the internet
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else logging a model runs `uv export` beside a uv.lock
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def telemetry_off() -> None:
    """Nothing that we import reports home. Call before the first import of anything heavy."""
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def ask_once() -> None:
    """Requests are not repeated by MLflow's client: a creation that is leaves a second run behind.
    For callers that look whether it is there, and then try again themselves."""
    telemetry_off()
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"


def tracking_uri(root: str = "runs", uri: str | None = None) -> str:
    """The URI in force: `uri`, else the environment's, else sqlite under `root`.

    A user name and password inside it move to MLflow's own variables, so that the URI can be shown.
    Raises ServerError for a scheme that MLflow cannot serve.
    """
    given = uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{Path(root).absolute()}/mlflow.db"
    parts = urlsplit(given)
    if re.split(r"[+]", parts.scheme)[0] not in SCHEMES or (
        parts.scheme.startswith("http") and not parts.hostname
    ):
        raise ServerError(
            f"MLFLOW_TRACKING_URI={display_uri(given)} cannot be used: give http(s)://HOST:PORT, "
            "sqlite:////ABSOLUTE/mlflow.db, or leave it unset for the embedded default"
        )
    if parts.scheme.startswith("http") and parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        given = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        if "MLFLOW_TRACKING_URI" in os.environ and not uri:
            os.environ["MLFLOW_TRACKING_URI"] = given
    return given


def default_root(run: str) -> str:
    """The folder that holds the runs, for the embedded store.

    Of a local run: the nearest folder above it that has a store already, else `runs` where that is
    above it, else its parent. Of a remote one: `runs`.
    """
    if not store.is_local(run):
        return "runs"
    above = list(store.local(run).absolute().parents)
    for folder in above:
        if (folder / "mlflow.db").exists():
            return str(folder)
    usual = Path("runs").absolute()
    return str(usual if usual in above else above[0])


def uri_for(run: str | None, root: str | None = None, uri: str | None = None) -> str:
    """The URI of a run's record: `uri`, the environment's, what `run.json` says, the embedded one.

    run: folder or URL, or None where only `root` is known.
    """
    if uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or run is None:
        return tracking_uri(root or "runs", uri)
    recorded = read_run_json(run).get("mlflow_uri")
    return tracking_uri(root or default_root(run), recorded)


def connect(uri: str, make: bool = True) -> Any:
    """An MlflowClient for `uri` (as `tracking_uri` gave it).

    A sqlite file that is not there is made whole first or, without `make`, refused. Raises
    ServerError, in one line, if a local database cannot be used. A server is not asked anything
    yet: `ping` does that.
    """
    telemetry_off()
    if path := sqlite_path(uri):
        warn_of_network(path)
        if not make and not path.exists():
            raise ServerError(
                f"there is no record at {uri}: nothing was trained or registered from here; set "
                "MLFLOW_TRACKING_URI to the record that is meant"
            )
        try:
            _create_database(path)
        except OSError as error:
            raise ServerError(
                f"{uri} cannot be made ({error.strerror}): check the folder's permissions and "
                "space, or set root= or MLFLOW_TRACKING_URI"
            ) from None
    import mlflow

    # MLflow's stores ask each other by the process's URI, whatever the client was given. Setting it
    # also exports it, which would make a default look like the user's choice.
    exported = os.environ.get("MLFLOW_TRACKING_URI")
    with explained(uri):
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if exported is not None:
            os.environ["MLFLOW_TRACKING_URI"] = exported
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def ping(client: Any, uri: str) -> None:
    """One cheap authenticated question; ServerError if it is not answered."""
    with explained(uri):
        client.search_experiments(max_results=1)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment's id; it is created where it is missing, by several processes at once too."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(uri)
        # An experiment's location is fixed for ever when it is made; a server knows its own.
        place = (path.parent / "mlartifacts").as_uri() if path else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise ServerError(
            f"experiment {name!r} was deleted in MLflow: restore it there, or choose another with "
            "tracking.experiment="
        )
    return found.experiment_id


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, absolute; None for anything else."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.partition(":///")[2]).absolute()


def run_link(uri: str, experiment: str, run: str) -> str:
    """The UI page of a run; its plain address would open the page for language models."""
    page = f"experiments/{quote(experiment)}/runs/{run}"
    return f"{_ui(uri)}/#/{page}?workflowType=machine_learning"


def model_link(uri: str, name: str, version: str) -> str:
    """The UI page of a registered version."""
    return f"{_ui(uri)}/#/models/{quote(name)}/versions/{version}?workflowType=machine_learning"


def _ui(uri: str) -> str:
    return "http://127.0.0.1:5000" if uri.startswith("sqlite") else display_uri(uri).rstrip("/")


def ui_command(uri: str) -> str:
    """How to look at it: a command for the embedded store, the address for a server."""
    if uri.startswith("sqlite"):
        command = shutil.which("mlflow") and "mlflow" or str(Path(sys.executable).parent / "mlflow")
        return (
            f"MLFLOW_DISABLE_TELEMETRY=true {command} server --backend-store-uri {uri} --port 5000"
        )
    return display_uri(uri)


def _create_database(path: Path) -> None:
    """Migrations run in a file of another name: killed half-way, or raced, they leave no ruin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".mlflow.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        fresh = path.with_name(".mlflow-new.db")
        fresh.unlink(missing_ok=True)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        made = SqlAlchemyStore(f"sqlite:///{fresh}", (path.parent / "mlartifacts").as_uri())
        made.engine.dispose()
        os.replace(fresh, path)


@functools.cache
def warn_of_network(path: Path) -> None:
    """Says once, on stderr, that a sqlite file lies on a network disk."""
    kind = disk_of(path)
    if kind.startswith(NETWORK):
        print(
            f"tracking: {path} lies on {kind}, where sqlite breaks under several jobs: set "
            "MLFLOW_TRACKING_URI to a server (jobs/deploy/server), or root= to a disk of this node",
            file=sys.stderr,
        )


def disk_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds `path`; "" where Linux does not tell.

    table: mountinfo as proc(5) has it; of two mounts at one place the later one counts.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return ""
    depth, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = left.split()[4].replace("\\040", " ")
        if path.resolve().is_relative_to(mounted) and len(mounted) >= depth:
            depth, kind = len(mounted), right.split()[0]
    return kind
