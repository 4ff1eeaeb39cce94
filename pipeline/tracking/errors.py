"""What went wrong with a tracking server, in one line that names the fix."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit


class ServerError(ValueError):
    """The tracking server cannot be used as asked; one line that says why and what to do."""


def display_uri(uri: str) -> str:
    """The URI without user, password and query."""
    if uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def explained(uri: str) -> Any:
    """Turns what MLflow raises into a ServerError of one line."""
    try:
        yield
    except ServerError:
        raise
    except Exception as error:
        line = explain(error, uri)
        if line is None:
            raise
        raise ServerError(line) from error


def explain(error: BaseException, uri: str) -> str | None:
    """One line for what MLflow, SQLAlchemy or the network raised; None if it is no such thing."""
    if not _foreign(error):
        return None
    text, where = str(error), display_uri(uri)
    code = getattr(error, "error_code", "")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "no user name")
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return (
            f"{where} was written by another version of MLflow: install that version, or back the "
            f"file up and run `mlflow db upgrade {where}`"
        )
    if "Invalid Host header" in text:
        return (
            f"{where} refuses to be called by this name: start the server with "
            f"--allowed-hosts '{urlsplit(uri).hostname}:*', or use a name that it knows"
        )
    if re.search("error code 401|401 Client", text) or code in (
        "UNAUTHENTICATED",
        "CUSTOMER_UNAUTHORIZED",
    ):
        return f"{where} refused {user}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if re.search("error code 403|403 Client", text) or code == "PERMISSION_DENIED":
        return f"{where} does not let {user} do this: an administrator grants {_missing(text)}"
    if "failed with exception" in text or "timeout exception" in text:
        return f"{where} does not answer: start it, or check MLFLOW_TRACKING_URI and the network"
    if "error code 404" in text or "not in a valid JSON format" in text:
        return f"{where} answers, but not as an MLflow server: check MLFLOW_TRACKING_URI"
    if "unable to open database file" in text or "readonly database" in text:
        return f"{where} cannot be written: check the folder's permissions, or set root="
    if "file is not a database" in text or "already exists" in text and "table" in text:
        return f"{where} is damaged: move it away; `sync` sends what the runs still hold"
    return f"{where}: {' '.join(text.split())[:300]}"


def _missing(text: str) -> str:
    """The permission that a refused request lacked, by the endpoint that MLflow's error names."""
    asked = re.search(r"(?:endpoint |https?://)\S*?api/\d\.0/(?:mlflow/)?([^\s?]+)", text)
    what = asked[1] if asked else ""
    if what.startswith(("registered-models", "model-versions", "registry")):
        return f"MANAGE on the registered model ({what}), which is a promoter's"
    if what:
        return f"EDIT on the experiment ({what})"
    return "EDIT on the experiment for training, MANAGE on the registered model for promotion"


def _foreign(error: BaseException) -> bool:
    top = type(error).__module__.partition(".")[0]
    return top in ("mlflow", "sqlalchemy", "requests", "urllib3", "alembic", "psycopg", "sqlite3")
