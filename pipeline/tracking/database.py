"""MLflow's databases: create the embedded one, keep its artifacts next to it, reach another."""

import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shards import files
from shards.file_lock import locked

# The columns of MLflow's tables that hold places of artifacts.
PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def artifacts(path: Path) -> str:
    """Return the URI of the folder of artifacts of the embedded database at `path`."""
    return (path.parent / "mlartifacts").as_uri()


def create(path: Path) -> None:
    """Create the database under another name, then rename it.

    MLflow's migrations leave a broken database behind if they are killed or raced.
    """
    with locked(path.with_name(".mlflow.lock")):
        if path.exists():
            return
        fresh = path.with_name(".mlflow-new.db")
        files.remove(fresh)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        database = SqlAlchemyStore(f"sqlite:///{fresh}", artifacts(path))
        database.engine.dispose()
        files.rename(fresh, path)
        files.sync_folder(path.parent)


def follow_move(path: Path) -> None:
    """Replace the old place of artifacts in an embedded database that moved with its folder."""
    here = artifacts(path)
    with closing(sqlite3.connect(path)) as opened, opened:
        known = opened.execute("select distinct artifact_location from experiments").fetchall()
        matches = [re.fullmatch("(file:.*/mlartifacts)(/.*)?", str(place)) for (place,) in known]
        for old in {match[1] for match in matches if match} - {here}:
            if _exists(old) and not _exists(here):
                continue  # elsewhere on purpose
            for table, column in PLACES.items():
                opened.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, len(old), old),
                )


def _exists(uri: str) -> bool:
    return Path(unquote(urlsplit(uri).path)).exists()


def reach(uri: str) -> None:
    """Connect to a database once, where MLflow would try for minutes; raises any error."""
    import sqlalchemy

    limit = {} if uri.startswith("mssql") else {"connect_timeout": 10}
    sqlalchemy.create_engine(uri, connect_args=limit).connect().engine.dispose()
