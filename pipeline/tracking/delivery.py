"""Turn the events of a spool into requests to MLflow.

Every request is idempotent: metrics keep their time and value, parameters and tags their content,
files their name. After any interruption, sending therefore resumes at the cursor.
"""

import errno
import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.spec import SECRET_NAME
from pipeline.common.console import say
from pipeline.common.errors import one_line
from pipeline.common.secrets import redact
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import experiment_id, recorded_run
from pipeline.tracking.spool import Event, Unsent, discard
from shards import store

UID = "lacuna.uid"
PARENT = "mlflow.parentRunId"
HEARTBEAT = "lacuna.heartbeat"
NOTE = "mlflow.note.content"  # the description, which a user may edit
BATCH = {"metrics": 1000, "params": 100, "tags": 100}
LIMIT = {"key": 250, "param": 6000, "tag": 5000}
# Answers of a server that will be the same at every retry.
PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
# The same of the disk or bucket that holds artifacts, where the client itself writes there.
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
BUCKET_REFUSAL = re.compile(
    r"\((AccessDenied|NoSuchBucket|InvalidAccessKeyId|SignatureDoesNotMatch)\)|locate credentials"
)


class Delivery:
    """Sends the events of a run. `run` is the folder or URL that holds `run.json`."""

    def __init__(self, client: Any, uri: str, run: str, unsent: Unsent) -> None:
        self.client, self.uri, self.run, self.unsent = client, uri, run, unsent
        self.rejected = 0
        self._said: set[str] = set()
        recorded = read_run_json(run)
        self.run_id: str | None = recorded.get("mlflow_run_id")
        self.parent = recorded.get("mlflow_parent")

    def send(self, events: list[Event]) -> None:
        """Send events in order and advance the cursor past them.

        Events that the server rejects permanently are set aside. Any other failure raises; the
        next call sends the remaining events.
        """
        batch: list[Event] = []
        for event in events:
            if event.kind in ("metrics", "tags"):
                batch.append(event)
                continue
            self._flush(batch)
            batch = []
            self._deliver(event, getattr(self, f"_{event.kind}", None))
        self._flush(batch)

    def _flush(self, events: list[Event]) -> None:
        if not events:
            return
        try:
            self._log(events)
        except Exception as error:
            if not self._is_permanent(error):
                raise
            for event in events:  # one of them is rejected: send each on its own
                self._deliver(event, lambda event: self._log([event]))
            return
        self.unsent.advance(events[-1].after)

    def _deliver(self, event: Event, deliver: Callable[[Event], None] | None) -> None:
        try:
            if deliver is None:
                raise ValueError(f"unknown kind of event {event.kind!r}")
            deliver(event)
        except Exception as error:
            if not self._is_permanent(error):
                raise
            reason = one_line(error)[:500]
            self.unsent.reject(event, reason)
            if reason not in self._said:
                say(redact(f"tracking: rejected and set aside: {reason}"))
            self._said.add(reason)
            self.rejected += 1
            self.unsent.advance(event.after)
            return
        self.unsent.advance(event.after)
        for name in event.fields.get("files", ()):
            discard(self.unsent.folder, name)

    def _is_permanent(self, error: Exception) -> bool:
        """Return whether every retry would fail; RunDeleted if the run was deleted in MLflow."""
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, errors.ServerError):
            return False
        if not isinstance(error, MlflowException):
            status = getattr(getattr(error, "response", None), "status_code", None)
            return isinstance(error, (ValueError, TypeError, KeyError, FileNotFoundError)) or (
                status in (400, 413, 414, 415, 422)
            )
        # An error page of a proxy, or of a server that is not MLflow, must not empty the spool.
        if self.uri.startswith("http") and not isinstance(error, RestException):
            return False
        if error.error_code not in (*PERMANENT, "RESOURCE_DOES_NOT_EXIST"):
            return False
        if self.run_id is not None:
            recorded_run(self.client, self.run_id)
        return True

    # --- one method for each kind of event -------------------------------------------------------

    def _start(self, event: Event) -> None:
        fields = event.fields
        if self.run_id is None:
            experiment = experiment_id(self.client, self.uri, fields["experiment"])
            tags = {UID: fields["uid"], "mlflow.runName": fields["run_name"]}
            tags |= {PARENT: self.parent} if self.parent else {}
            # An existing one was created by a request that seemed to fail.
            run = next(iter(self._same(experiment, fields["uid"])), None)
            run = run or self.client.create_run(experiment, start_time=event.time_ms, tags=tags)
            self.run_id = run.info.run_id
        else:
            experiment = recorded_run(self.client, self.run_id).info.experiment_id
        update_run_json(
            self.run,
            mlflow_run_id=self.run_id,
            mlflow_experiment_id=experiment,
            mlflow_uri=errors.display_uri(self.uri),
        )
        self.client.update_run(self.run_id, status="RUNNING")
        recorded = self.client.get_run(self.run_id).data
        if "job.error" in recorded.tags:  # of an earlier attempt
            self.client.delete_tag(self.run_id, "job.error")
        known = recorded.params
        wanted = {k[: LIMIT["key"]]: v[: LIMIT["param"]] for k, v in fields["params"].items()}
        changed = {k: v for k, v in wanted.items() if known.get(k, v) != v}
        tags = dict(fields["tags"])
        if note := tags.pop(NOTE, None):
            tags |= {} if NOTE in recorded.tags else {NOTE: note.replace("{run_id}", self.run_id)}
        if changed:  # MLflow never changes the value of a parameter
            tags[f"resume.{fields['attempt']}.overrides"] = json.dumps(changed, sort_keys=True)
        self._log_dicts({k: v for k, v in wanted.items() if k not in known}, tags)
        if fields.get("dataset"):
            self._log_dataset(**fields["dataset"])

    def _same(self, experiment: str, uid: str) -> Any:
        """Return the MLflow runs that were created for this run."""
        return self.client.search_runs([experiment], f"tags.`{UID}` = '{uid}'")

    def _log_dataset(self, name: str, url: str, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": store.display(url)})
        kind = "s3" if url.startswith("s3://") else "local"
        dataset = Dataset(name, digest[:32], kind, source)
        tags = [InputTag("mlflow.data.context", "train"), InputTag("manifest_sha256", digest)]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _log(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics, tags = [], {}
        for event in events:
            values = event.fields["values"]
            if event.kind == "tags":
                tags.update(values)
            else:
                time_ms, step = event.time_ms, event.fields["step"]
                metrics += [Metric(k, v, time_ms, step) for k, v in values.items()]
        tags[HEARTBEAT] = str(events[-1].time_ms)
        if metrics:
            tags["lacuna.images_seen"] = str(max(metric.step for metric in metrics))
        self._log_batches("metrics", metrics)
        self._log_dicts({}, tags)

    def _log_dicts(self, params: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self._log_batches("params", [Param(k, v) for k, v in params.items()])
        limited = ((k[: LIMIT["key"]], v[: LIMIT["tag"]]) for k, v in tags.items())
        self._log_batches("tags", [RunTag(k, v) for k, v in limited])

    def _log_batches(self, kind: str, items: Sequence[Any]) -> None:
        """Log metrics, params or tags, as many in a request as MLflow accepts."""
        for start in range(0, len(items), BATCH[kind]):
            self.client.log_batch(self.run_id, **{kind: items[start : start + BATCH[kind]]})

    def _image(self, event: Event) -> None:
        """Log an image as `MlflowClient.log_image` does, under the same name at every retry."""
        from PIL import Image

        file = self.unsent.folder / "files" / event.fields["files"][0]
        height, width = event.fields["shape"][:2]
        pixels = np.frombuffer(file.read_bytes(), np.uint8).reshape(height, width, 3)
        key, step = event.fields["key"], event.fields["step"]
        unique = hashlib.sha256(f"{key} {step} {event.time_ms}".encode()).hexdigest()[:32]
        stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{event.time_ms}+{unique}"
        with tempfile.TemporaryDirectory() as folder:
            image = Image.fromarray(pixels)
            image.save(Path(folder, f"{stem}.png"))
            image.thumbnail((1024, 1024))  # MLflow's own 256 are too few for a contact sheet
            image.save(Path(folder, f"{stem}+compressed.webp"))
            self._log_files(folder, "images")
        self._log_dicts({}, {"mlflow.loggedImages": "True"})

    def _artifact(self, event: Event) -> None:
        holder = self.unsent.folder / "files" / event.fields["files"][0]
        self._log_files(str(holder), event.fields["folder"] or None)

    def _log_files(self, folder: str, path: str | None) -> None:
        """Upload a folder; ValueError, which sets the event aside, if its destination refuses."""
        try:
            self.client.log_artifacts(self.run_id, folder, path)
        except Exception as error:
            if getattr(error, "errno", None) not in REFUSALS and not BUCKET_REFUSAL.search(
                str(error)
            ):
                raise
            place = self.client.get_run(self.run_id).info.artifact_uri
            raise ValueError(
                f"this client, not the server, writes artifacts to {place}, and may not "
                f"({one_line(error)}): start the server with --artifacts-destination, or give "
                "this account access"
            ) from None

    def _finish(self, event: Event) -> None:
        status = event.fields["status"]
        experiment = self.client.get_run(self.run_id).info.experiment_id
        for run in self._same(experiment, event.fields["uid"]):
            if run.info.run_id != self.run_id:  # created by a request that seemed to fail
                self.client.delete_run(run.info.run_id)
        if status == "REQUEUED":
            self._log_dicts({}, {"job.state": "requeued"})
            self.client.update_run(self.run_id, status="SCHEDULED")
            return
        self._log_dicts({}, {"job.state": status.lower()})
        self.client.set_terminated(self.run_id, status, event.time_ms)

    def _end(self, event: Event) -> None:
        """Send nothing: this event only ends a segment."""


@functools.lru_cache(4096)
def clean(key: str) -> str:
    """Return the key in characters that MLflow allows: `psnr (0.1,0.2]` is `psnr 0.1_0.2`."""
    return re.sub(r"_*([/ ])_*", r"\1", re.sub(r"[^\w\-./ ]+", "_", key)).strip("_")[:250]


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested dictionaries into dotted keys, lists into JSON, secrets into `***`."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if value and SECRET_NAME.search(str(key)):
            flat[clean(name)] = "***"
        elif isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[clean(name)] = redact(text)
    return flat
