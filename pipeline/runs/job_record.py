"""The record of a submitted job: `jobs.json` next to the job's files, and a pointer to it.

The pointer, in this machine's cache folder, lets `status ID` find runs in a bucket.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from threading import Thread
from typing import Any

from jobs import scheduler
from jobs.kubectl import GONE
from jobs.slurm_status import from_notes
from jobs.spec import Cluster, JobState, Status, SubmitError
from pipeline.common import inputs
from pipeline.common.console import say
from pipeline.common.environment import cache_dir
from pipeline.common.errors import one_line
from shards import files, store

NAME = "jobs.json"
TIMEOUT = 10.0  # seconds, for buckets that do not answer
NOT_SUBMITTED = (
    "`submit` has not ended yet, or was killed before the job was queued: submit it again"
)
CLUSTER_KEYS = ("scheduler", "context", "namespace", "queue", "kind")


@dataclass(frozen=True)
class SubmittedJob:
    """One submitted job; `number` is the scheduler's id, empty until known."""

    id: str
    verb: str
    run: str
    folder: str
    number: str
    cluster: dict[str, Any]
    submitted: str
    commit: str | None = None
    points: tuple[str, ...] = ()  # a sweep's runs
    cancelled: bool = False
    before: tuple[str, ...] = ()  # earlier submissions' numbers
    pods: tuple[str, ...] = ()  # names of its pods in `<folder>/logs`
    sought: tuple[str, ...] = ()  # names to find it by while `number` is empty

    @property
    def trained(self) -> tuple[str, ...]:
        """The runs that this job trains; none for a command that only reads a run."""
        return self.points or (self.run,) * (self.verb == "train")

    @property
    def where(self) -> Cluster:
        return Cluster(**self.cluster)

    def settled(self) -> SubmittedJob:
        """Ask the scheduler for the number if `submit` ended before it could record it."""
        if self.number or not self.sought:
            return self
        number = scheduler.find(self.sought, self.folder, self.before, self.where)
        return replace(self, number=number)

    def status(self) -> Status:
        """Ask the scheduler for the state; a job that is gone after `cancel` was cancelled."""
        number, status = self.settled().number, Status(JobState.UNKNOWN, NOT_SUBMITTED)
        if number:
            status = scheduler.status(number, self.folder, self.where, self.run)
        if status.state is JobState.UNKNOWN and self.pods:
            last = self._last_status()
            reason = status.reason if status.reason != GONE else last.reason
            status = replace(last, reason=reason) if last.state is JobState.UNKNOWN else last
        stopped = (JobState.UNKNOWN, JobState.FAILED, JobState.INTERRUPTED, JobState.CANCELLED)
        if self.cancelled and status.state in stopped:
            return replace(status, state=JobState.CANCELLED, reason="by `cancel`")
        return status

    def _last_status(self) -> Status:
        """Derive the state from its pods' last notes, once the cluster has deleted the job."""
        logs, notes = store.join(self.folder, "logs"), {}
        for pod in self.pods:
            try:
                text = store.read(store.join(logs, f"{pod}.state")).decode()
            except FileNotFoundError:
                text = "QUEUED"
            notes[pod.removeprefix("pod-").replace("-", ".")] = text.strip()
        status = from_notes(notes, "Kubernetes")
        gang = self.verb in ("train", "doctor") and not self.points
        return replace(status, elements={}) if gang else status


@dataclass(frozen=True)
class Unread:
    """A record that exists but cannot be read: its place and the reason."""

    place: str
    reason: str


def where_of(cluster: Cluster) -> dict[str, Any]:
    return {k: v for k, v in asdict(cluster).items() if k in CLUSTER_KEYS}


def write(record: SubmittedJob) -> None:
    """Write the record to the job's folder and to each run that it trains."""
    text = (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()
    for place in {record.folder, *record.trained}:
        store.write(store.join(place, NAME), text)


def point_to(record: SubmittedJob) -> None:
    """Write pointers to this machine's cache folder, if it is writable."""
    place = record.folder if not store.is_local(record.folder) else os.path.abspath(record.folder)
    try:
        files.make_folder(pointers())
        for name in (record.id, *(store.name(p) for p in record.points)):
            files.replace(pointers() / name, place.encode())
    except OSError as error:
        say(
            f"{pointers()} cannot be written ({error.strerror}): `status` finds {record.id} only "
            f"by its folder, {place}; set XDG_CACHE_HOME to a writable folder"
        )


def read(folder: str) -> SubmittedJob | None:
    """Read the record in a folder or at a URL; None if nothing was submitted from there.

    Raises `SubmitError` for an invalid file, OSError if it cannot be reached.
    """
    try:
        return parse(store.read(store.join(folder, NAME)), folder)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse(data: bytes, folder: str) -> SubmittedJob | None:
    """Return the record in a folder's file; None if it is the original's and came along in a copy.

    Raises `SubmitError`.
    """
    url = store.join(folder, NAME)
    try:
        values = json.loads(data)
        known = {f.name for f in fields(SubmittedJob)}
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        record = SubmittedJob(**kept)
        Cluster(**record.cluster)
        str.join("", (record.id, record.verb, record.run, record.folder, record.number))
    except (ValueError, TypeError, AttributeError) as error:
        raise SubmitError(
            f"{store.display(url)} is not a valid job record ({one_line(error)}): submit the job "
            f"again, or remove the file"
        ) from None
    own = inputs.place(folder) in map(inputs.place, (record.folder, *record.trained))
    return record if own or not store.exists(store.join(record.folder, NAME)) else None


def cancelled(run: str) -> bool:
    """Return whether the job that trains the run was cancelled."""
    try:
        record = read(run)
    except (OSError, ValueError, TypeError):
        return False
    return record is not None and record.cancelled


def find(name: str, root: str) -> SubmittedJob:
    """Find the record of a job or run by its id, folder or URL, or raise `SubmitError`."""
    places = [name, store.join(root, name)]
    pointer = pointers() / store.name(name)
    if pointer.is_file():
        places.append(pointer.read_text().strip())
    for url in places:
        if (record := read(url)) is not None:
            return record.settled()
        if store.exists(store.join(url, NAME)):
            raise SubmitError(
                f"{store.display(url)} is a copy of a run and was not submitted itself: give the "
                "id or folder of the original's job, or submit the copy"
            )
    known = sorted({r.id for r in every(root) if isinstance(r, SubmittedJob)})
    listed = f" (known: {', '.join(known[:20])}{', …' * (len(known) > 20)})" if known else ""
    raise SubmitError(f"no record of a job {name!r} under root={root} or on this machine{listed}")


def every(root: str) -> Iterator[SubmittedJob | Unread]:
    """Yield the records under `root`, then those elsewhere that this machine has pointers to.

    All are read in parallel, for at most `TIMEOUT` seconds.
    """
    places = []
    if store.is_local(root):
        places = [str(p.parent) for p in sorted(store.local(root).glob(f"*/{NAME}"))]
    if pointers().is_dir():
        places += [p.read_text().strip() for p in sorted(pointers().iterdir())]
    seen: set[tuple[str, str]] = set()
    once = {os.path.abspath(p) if store.is_local(p) else p: p for p in reversed(places)}
    for record in _all(list(reversed(once.values()))):
        if isinstance(record, Unread):
            yield record
        elif record is not None and (record.folder, record.number) not in seen:
            seen.add((record.folder, record.number))
            yield record


def _all(places: Sequence[str]) -> Iterator[SubmittedJob | Unread | None]:
    answers: dict[str, SubmittedJob | Unread | None] = {}

    def ask(place: str) -> None:
        try:
            answers[place] = read(place)
        except (OSError, ValueError) as error:
            answers[place] = Unread(place, one_line(error))

    threads = [Thread(target=ask, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    end = time.monotonic() + TIMEOUT
    for place, thread in zip(places, threads, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        gone = Unread(place, f"no answer within {TIMEOUT:.0f} s: check endpoint and network")
        yield answers.get(place, gone)


def pointers() -> Path:
    return cache_dir() / "jobs"
