"""Collect evaluations: those logged to MLflow, and those in the folders of runs."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.common.environment import cache_dir
from pipeline.evaluation import pair_images, results
from pipeline.tracking import errors
from pipeline.tracking.client import connect, search, sqlite_path, tracking_uri
from pipeline.tracking.sender import say
from shards import files, store

FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    url: str  # of the Parquet file
    facts: dict[str, Any]
    table: pa.Table
    mlflow_run: str | None = None

    @property
    def identity(self) -> tuple[Any, ...]:
        """What identifies the measured model and its pairs, whatever the number of images seen."""
        facts = self.facts
        model = facts.get("run") or facts.get("model_uri") or facts["name"]
        return model, facts["weights"], facts["protocol"], facts["pairs_digest"], facts["ssim"]

    @property
    def names(self) -> tuple[str | None, ...]:
        """What `runs=` may call it: `RUN@IMAGES`, `RUN`, or the id of its MLflow run."""
        return self.facts["name"], self.facts["name"].split("@")[0], self.mlflow_run


def collect(root: str, wanted: Iterable[str] = ()) -> list[Evaluation]:
    """Return the newest evaluation of each model on each set of pairs, sorted by name.

    wanted: names of runs, MLflow run ids, folders of runs, or Parquet files; none: everything in
    MLflow and below `root`. Raises ValueError for a name without an evaluation.
    """
    wanted = list(wanted)
    evaluations = list(_from_mlflow(root)) + list(_below(root))
    if wanted:
        evaluations = [e for name in wanted for e in _named(name, evaluations)]
    newest: dict[tuple[Any, ...], Evaluation] = {}
    for evaluation in sorted(evaluations, key=_age, reverse=True):
        newest.setdefault(evaluation.identity, evaluation)
    return sorted(newest.values(), key=lambda e: (e.facts["name"], e.url))


def _age(evaluation: Evaluation) -> tuple[int, bool]:
    return int(evaluation.facts.get("images_seen", 0)), evaluation.mlflow_run is not None


def _named(name: str, evaluations: list[Evaluation]) -> list[Evaluation]:
    if name.endswith(".parquet"):
        return [_read(name)]
    if store.exists(store.join(name, FOLDER)):
        return list(_tables(store.join(name, FOLDER)))
    named = [e for e in evaluations if name in e.names]
    if not named:
        known = ", ".join(sorted({e.facts["name"] for e in evaluations})) or "nothing yet"
        raise ValueError(f"runs={name} has no evaluation (evaluated: {known}): evaluate it first")
    return named


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
                artifacts = client.list_artifacts(run.info.run_id, FOLDER)
                sizes = {artifact.path: artifact.file_size for artifact in artifacts}
                for path in sizes:
                    if path.endswith(".parquet"):
                        url = _download(client, run.info.run_id, path, sizes)
                        yield from _read_or_warn(url, run.info.run_id)
    except errors.ServerError as error:
        say(f"{error}; only evaluations below {root} are compared")


def _download(client: Any, run_id: str, path: str, sizes: dict[str, int]) -> str:
    """Download a run's table, and its sample images if any, into the cache."""
    folder = cache_dir() / "evaluations" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in (pair_images.samples_url(path), path):
        local = folder / Path(name).name
        if name in sizes and (not local.exists() or local.stat().st_size != sizes[name]):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                files.rename(Path(client.download_artifacts(run_id, name, scratch)), local)
    return str(folder / Path(path).name)


def _below(root: str) -> Iterator[Evaluation]:
    """Yield the tables of `root/evaluation` and of the runs in `root`."""
    yield from _tables(store.join(root, FOLDER))
    for name in store.names(root):
        yield from _tables(store.join(root, name, FOLDER))


def _tables(folder: str) -> Iterator[Evaluation]:
    for name in store.names(folder):
        if name.endswith(".parquet"):
            yield from _read_or_warn(store.join(folder, name))


def _read_or_warn(url: str, mlflow_run: str | None = None) -> Iterator[Evaluation]:
    """Yield the evaluation at `url`; skip a file that `evaluate` did not write, with a message."""
    try:
        yield _read(url, mlflow_run)
    except ValueError as error:
        say(f"{error}; skipping it")


def _read(url: str, mlflow_run: str | None = None) -> Evaluation:
    table, facts = results.load(url)
    return Evaluation(url, facts, table, mlflow_run)


def digest(evaluations: Iterable[Evaluation]) -> str:
    """Return a short hash of the compared models and pairs."""
    text = "\n".join(sorted(repr(e.identity) for e in evaluations))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
