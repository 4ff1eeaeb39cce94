"""Errors of a tracking server as one line that names the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

HIDDEN = "***"
HOST = r"(?:\[[^\]@]*\]|[^@/?#:\[]*)(?::\d*)?"
WELL_FORMED = re.compile(
    rf"(?:([a-z][\w+.-]*://)|(?!.*://))(?:[^/?#]*@)?({HOST}(?:/[^@?#]*)?)(?:[?#][^@]*)?", re.I
)


class ServerError(ValueError):
    """The tracking server cannot be used: one line with the reason and the fix."""


def display_uri(uri: str) -> str:
    """Return the URI without user, password, query and fragment; HIDDEN where it is malformed.

    `http://bob:pass/word@host`, with a "/" that is not written %2F, is such a URI.
    """
    if uri.startswith("sqlite:"):
        return uri
    parts = WELL_FORMED.fullmatch(uri)
    return f"{parts[1] or ''}{parts[2]}" if parts else HIDDEN


class RunDeleted(ServerError):
    """The server does not have the MLflow run, so nothing can be sent to it."""


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy or the network raise into a ServerError."""
    try:
        yield
    except Exception as error:
        if not _is_foreign(error):
            raise
        raise ServerError(explain(error, uri)) from error


def explain(error: BaseException, uri: str) -> str:
    """Return one line for any error that occurred while `uri` was used."""
    line, where = " ".join(str(error).split()), display_uri(uri)
    if isinstance(error, ServerError):
        return str(error)
    if not _is_foreign(error):
        return f"{type(error).__name__}: {line}"
    if isinstance(error, ImportError):  # a driver, such as MySQLdb
        return (
            f"{where} needs a package that is not installed ({line}): install it, or name another "
            "driver, such as mysql+pymysql:// or postgresql+psycopg://"
        )
    text = f"{getattr(error, 'error_code', '')} {line}"
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "no user name")
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return (
            f"{where} was written by another version of MLflow: install that version, or back up "
            f"the file and run `mlflow db upgrade {where}`"
        )
    if "Invalid Host header" in text:
        return (
            f"{where} rejects this host name: start the server with "
            f"--allowed-hosts '{urlsplit(uri).hostname}:*', or use a name that it allows"
        )
    if re.search("error code 401|401 Client|^(UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED) ", text):
        return f"{where} refused {user}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if re.search("error code 403|403 Client|^PERMISSION_DENIED ", text):
        return f"{where} does not let {user} do this: an administrator grants {_missing(text)}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{where}: untrusted certificate; set MLFLOW_TRACKING_SERVER_CERT_PATH to its CA"
    if re.search("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|wrong version number", text):
        return f"{where} does not speak TLS: give http:// instead of https://"
    if "failed with exception" in text or "timeout exception" in text:
        return f"{where} does not answer: start it, or check MLFLOW_TRACKING_URI and the network"
    if re.search("error code 404.*logged-models|logged-models.*error code 404", text):
        return f"{where} is older than MLflow 3, it has no API of logged models: update the server"
    if "error code 404" in text or "not in a valid JSON format" in text:
        return f"{where} answers, but not as an MLflow server: check MLFLOW_TRACKING_URI"
    if "unable to open database file" in text or "readonly database" in text:
        return f"{where} cannot be written: check the folder's permissions, or set root="
    if "file is not a database" in text or "already exists" in text and "table" in text:
        return f"{where} is damaged: move it away; `sync` sends what the runs still hold"
    if uri.startswith(("http", "sqlite")):
        return f"{where}: {line[:300]}"
    reason = line.partition(" (Background")[0][:300]
    fix = "start the database, or check MLFLOW_TRACKING_URI and the network"
    return f"{where} cannot be used ({reason}): {fix}"


def _missing(text: str) -> str:
    """Name the permission that a refused request needs, by the endpoint in MLflow's message."""
    endpoint = re.search(r"(?:endpoint |https?://)\S*?api/\d\.0/(?:mlflow/)?([^\s?]+)", text)
    what = endpoint[1] if endpoint else ""
    if what.startswith(("registered-models", "model-versions", "registry")):
        return f"MANAGE on the registered model ({what}), which is a promoter's"
    if what:
        return f"EDIT on the experiment ({what})"
    return "EDIT on the experiment for training, MANAGE on the registered model for promotion"


def _is_foreign(error: BaseException) -> bool:
    """Return whether a library raised it or is missing, not this project."""
    if isinstance(error, ImportError):
        return True
    top = type(error).__module__.partition(".")[0]
    return top in ("mlflow", "sqlalchemy", "requests", "urllib3", "alembic", "psycopg", "sqlite3")


def databases_below(path: Path | None) -> str:
    """Name the databases one folder below a sqlite file, such as quickstart's, or nothing."""
    below = sorted(path.parent.glob("*/mlflow.db")) if path else []
    found = ", ".join(f"MLFLOW_TRACKING_URI=sqlite:///{each}" for each in below[:3])
    return found and f" (one folder down: {found})"
