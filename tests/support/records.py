"""What a tracking database holds, read from its tables, and runs of its embedded kind."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.runs.run_json import read_run_json
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.tracker import Tracker


def tracker(root, name, **options):
    return Tracker(root / name, root=str(root), experiment="me/recipe", run_name=name, **options)


def client(root):
    return connect(tracking_uri(str(root)))


def run_of(root, name):
    return client(root).get_run(read_run_json(str(root / name))["mlflow_run_id"])


def steps(root, name, key="g/l1"):
    return Database(root / "mlflow.db").steps(name, key)


def until(condition, seconds=60):
    for _ in range(int(seconds * 20)):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never came true")


class Database:
    """MLflow's own tables in a sqlite file: the oracle of what was recorded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, query: str, *values) -> list[tuple]:
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()

    def runs(self, name: str) -> list[tuple[str, str]]:
        """(id, status) of each run of that name that is not deleted."""
        query = "select run_uuid, status from runs where name = ? and lifecycle_stage = 'active'"
        return self.rows(query, name)

    def steps(self, name: str, key: str = "g/l1") -> list[int]:
        """Steps at which a metric was recorded, sorted; twice where it was recorded twice."""
        query = "select m.step from metrics m join runs r using (run_uuid) where r.name = ?"
        return sorted(step for (step,) in self.rows(f"{query} and m.key = ?", name, key))

    def metrics(self, name: str) -> dict[str, float]:
        """Each metric's value at its highest step."""
        query = "select m.key, m.value from metrics m join runs r using (run_uuid) where r.name = ?"
        return dict(self.rows(f"{query} order by m.step, m.timestamp", name))

    def tags(self, name: str) -> dict[str, str]:
        query = "select t.key, t.value from tags t join runs r using (run_uuid) where r.name = ?"
        return dict(self.rows(query, name))

    def params(self, name: str) -> dict[str, str]:
        query = "select p.key, p.value from params p join runs r using (run_uuid) where r.name = ?"
        return dict(self.rows(query, name))

    def artifacts(self, name: str) -> Path:
        """The folder of a run's artifacts, on this disk."""
        ((uri,),) = self.rows("select artifact_uri from runs where name = ?", name)
        return Path(unquote(urlsplit(uri).path))

    def images(self, name: str) -> dict[str, list[int]]:
        """Steps of each image key."""
        steps: dict[str, list[int]] = {}
        for path in self.artifacts(name).glob("images/*.png"):
            key, step = path.name.split("+step+")
            steps.setdefault(key.replace("~", "/"), []).append(int(step.partition("+")[0]))
        return {key: sorted(values) for key, values in steps.items()}


def logged_steps(run: Path) -> list[int]:
    """`images_seen` of each whole line of a run's own steps.jsonl."""
    lines = (run / "steps.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line)["images_seen"] for line in lines]
