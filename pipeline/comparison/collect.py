"""Every evaluation there is: of runs, as MLflow has them, and of anything else, from its files."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.common.environment import cache_dir
from pipeline.evaluation import results
from pipeline.tracking import errors
from pipeline.tracking.client import connect, search, sqlite_path, tracking_uri
from pipeline.tracking.sender import say
from shards import store

FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    url: str  # of the Parquet
    facts: dict[str, Any]
    table: pa.Table
    mlflow_run: str | None = None

    @property
    def identity(self) -> tuple[Any, ...]:
        """Evaluations of one identity measured the same thing on the same pairs."""
        told = self.facts
        what = told.get("run") or told.get("model_uri") or told["name"]
        return what, told["weights"], told["protocol"], told["pairs_digest"]


def collect(root: str, wanted: Iterable[str] = ()) -> list[Evaluation]:
    """The newest evaluation of each thing on each set of pairs, in order of names.

    wanted: names of runs, MLflow run ids, folders of runs, or Parquet files; none: everything in
    MLflow and below `root`. ValueError names one that was never evaluated.
    """
    wanted = list(wanted)
    found = list(_from_mlflow(root)) + list(_below(root))
    if wanted:
        found = [e for name in wanted for e in _named(name, found)]
    newest: dict[tuple[Any, ...], Evaluation] = {}
    for evaluation in found:
        there = newest.get(evaluation.identity)
        if there is None or _age(there) < _age(evaluation):
            newest[evaluation.identity] = evaluation
    return sorted(newest.values(), key=lambda e: (e.facts["name"], e.url))


def _age(evaluation: Evaluation) -> tuple[int, bool]:
    return int(evaluation.facts.get("images_seen", 0)), evaluation.mlflow_run is not None


def _named(name: str, found: list[Evaluation]) -> list[Evaluation]:
    if name.endswith(".parquet"):
        return [_read(name)]
    if store.exists(store.join(name, FOLDER)):
        return list(_tables(store.join(name, FOLDER)))
    ours = [e for e in found if name in (e.facts["name"].split("@")[0], e.mlflow_run)]
    ours = ours or [e for e in found if e.facts["name"] == name]
    if not ours:
        there = ", ".join(sorted({e.facts["name"] for e in found})) or "nothing yet"
        raise ValueError(f"runs={name}: no evaluation of it was found (evaluated: {there})")
    return ours


def _from_mlflow(root: str) -> Iterator[Evaluation]:
    uri = tracking_uri(root)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        return
    try:
        client = connect(uri)
        with errors.explained(uri):
            experiments = [e.experiment_id for e in search(client.search_experiments)]
            if not experiments:
                return
            for run in search(client.search_runs, experiments):
                if not any(name.startswith("eval/") for name in run.data.metrics):
                    continue
                for artifact in client.list_artifacts(run.info.run_id, FOLDER):
                    if artifact.path.endswith(".parquet"):
                        url = _fetched(client, run.info.run_id, artifact.path)
                        yield from _ours(url, run.info.run_id)
    except errors.ServerError as error:
        say(f"{error}; only evaluations below {root} are compared")


def _fetched(client: Any, run_id: str, path: str) -> str:
    """A run's table, and its pictures if it has some, as files of the cache."""
    cache = cache_dir()
    folder = cache / "lacuna" / "evaluations" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    pictures = f"{path.removesuffix('.parquet')}.pictures.zip"
    there = {a.path: a.file_size for a in client.list_artifacts(run_id, FOLDER)}
    for name in (pictures, path):
        local = folder / Path(name).name
        if name in there and (not local.exists() or local.stat().st_size != there[name]):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                os.replace(client.download_artifacts(run_id, name, scratch), local)
    return str(folder / Path(path).name)


def _below(root: str) -> Iterator[Evaluation]:
    """Tables of `root/evaluation` and of the runs in `root`."""
    yield from _tables(store.join(root, FOLDER))
    for name in store.names(root):
        yield from _tables(store.join(root, name, FOLDER))


def _tables(folder: str) -> Iterator[Evaluation]:
    for name in store.names(folder):
        if name.endswith(".parquet"):
            yield from _ours(store.join(folder, name))


def _ours(url: str, mlflow_run: str | None = None) -> Iterator[Evaluation]:
    """The evaluation at `url`; nothing but a line where somebody else's file lies there."""
    try:
        yield _read(url, mlflow_run)
    except ValueError as error:
        say(f"{error}; it is left out")


def _read(url: str, mlflow_run: str | None = None) -> Evaluation:
    if not store.exists(url):
        raise ValueError(f"{store.display(url)}: no such evaluation")
    table, facts = results.load(url)
    return Evaluation(url, facts, table, mlflow_run)


def digest(evaluations: Iterable[Evaluation]) -> str:
    """Short hash of what is compared."""
    text = "\n".join(sorted(repr(e.identity) for e in evaluations))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
