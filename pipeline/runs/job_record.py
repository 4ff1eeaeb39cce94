"""What was submitted: `jobs.json` beside the job's files, and a pointer to it on this machine.

The pointer, under the cache folder, lets `status ID` find runs that live in a bucket.
"""

from __future__ import annotations

import json
import os
import sys
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
from pipeline.common.environment import cache_dir
from shards import objects, store

NAME = "jobs.json"
PATIENCE = 10.0  # with buckets that do not answer
NEVER = "`submit` has not ended yet, or was killed before the job was taken: submit it again"
WHERE = ("scheduler", "context", "namespace", "queue", "kind")


@dataclass(frozen=True)
class SubmittedJob:
    """One submitted job. `number` is the scheduler's id, empty until it was heard; `points` the
    runs of a sweep."""

    id: str
    verb: str
    run: str
    folder: str
    number: str
    cluster: dict[str, Any]
    submitted: str
    commit: str | None = None
    points: tuple[str, ...] = ()
    cancelled: bool = False
    before: tuple[str, ...] = ()  # earlier submissions' numbers
    pods: tuple[str, ...] = ()  # what its pods call themselves in `<folder>/logs`
    sought: tuple[str, ...] = ()  # what it is found by while `number` is empty

    @property
    def trained(self) -> tuple[str, ...]:
        """The runs whose record this is: none of a verb that only looks at one."""
        return self.points or (self.run,) * (self.verb == "train")

    @property
    def where(self) -> Cluster:
        return Cluster(**self.cluster)

    def settled(self) -> SubmittedJob:
        """With its number, asked for where `submit` ended before it could write it down."""
        if self.number or not self.sought:
            return self
        number = scheduler.find(self.sought, self.folder, self.before, self.where)
        return replace(self, number=number)

    def status(self) -> Status:
        """The scheduler's word; a job that is gone after it was cancelled was cancelled."""
        number, found = self.settled().number, Status(JobState.UNKNOWN, NEVER)
        if number:
            found = scheduler.status(number, self.folder, self.where, self.run)
        if found.state is JobState.UNKNOWN and self.pods:
            left = self._left()
            told = found.reason if found.reason != GONE else left.reason
            found = replace(left, reason=told) if left.state is JobState.UNKNOWN else left
        stopped = (JobState.UNKNOWN, JobState.FAILED, JobState.INTERRUPTED, JobState.CANCELLED)
        if self.cancelled and found.state in stopped:
            return replace(found, state=JobState.CANCELLED, reason="by `cancel`")
        return found

    def _left(self) -> Status:
        """The last words of its pods, once the cluster has forgotten the job."""
        logs, notes = store.join(self.folder, "logs"), {}
        for pod in self.pods:
            try:
                text = store.read(store.join(logs, f"{pod}.state")).decode()
            except FileNotFoundError:
                text = "QUEUED"
            notes[pod.removeprefix("pod-").replace("-", ".")] = text.strip()
        found = from_notes(notes, "Kubernetes")
        gang = self.verb in ("train", "doctor") and not self.points
        return replace(found, elements={}) if gang else found


@dataclass(frozen=True)
class Unread:
    """A record that lies somewhere and cannot be read: where, and why."""

    place: str
    reason: str


def where_of(cluster: Cluster) -> dict[str, Any]:
    return {k: v for k, v in asdict(cluster).items() if k in WHERE}


def write(record: SubmittedJob) -> None:
    """Publishes the record in the job's folder and in each run that it trains."""
    text = (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()
    for place in {record.folder, *record.trained}:
        store.write(store.join(place, NAME), text)


def point_to(record: SubmittedJob) -> None:
    """Leaves pointers on this machine, where its cache can be written."""
    place = record.folder if not store.is_local(record.folder) else os.path.abspath(record.folder)
    try:
        pointers().mkdir(parents=True, exist_ok=True)
        for name in (record.id, *(store.name(p) for p in record.points)):
            (pointers() / name).write_text(place)
    except OSError as error:
        print(
            f"{pointers()} cannot be written ({error.strerror}): `status` finds {record.id} by its "
            f"folder alone, {place}; set XDG_CACHE_HOME",
            file=sys.stderr,
        )


def read(folder: str) -> SubmittedJob | None:
    """The record in a folder or at a URL; None where nothing was submitted.

    Raises `SubmitError` naming a file that is none, OSError where it cannot be reached.
    """
    url = store.join(folder, NAME)
    try:
        values = json.loads(store.read(url))
        known = {f.name for f in fields(SubmittedJob)}
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        record = SubmittedJob(**kept)
        Cluster(**record.cluster)
        str.join("", (record.id, record.verb, record.run, record.folder, record.number))
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except objects.StoreError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise SubmitError(
            f"{store.display(url)} is no record of a job ({why}): submit it again, or remove it"
        ) from None


def cancelled(run: str) -> bool:
    """Whether the job that trains the run was told to stop for good."""
    try:
        record = read(run)
    except (OSError, ValueError, TypeError):
        return False
    return record is not None and record.cancelled


def find(name: str, root: str) -> SubmittedJob:
    """The record of a job or run by its id, folder or URL. Raises `SubmitError`."""
    places = [name, store.join(root, name)]
    pointer = pointers() / store.name(name)
    if pointer.is_file():
        places.append(pointer.read_text().strip())
    for place in places:
        if (record := read(place)) is not None:
            return record.settled()
    known = sorted({r.id for r in every(root) if isinstance(r, SubmittedJob)})
    listed = f" (known: {', '.join(known[:20])}{', …' * (len(known) > 20)})" if known else ""
    raise SubmitError(f"no job {name!r} was submitted from {root} or this machine{listed}")


def every(root: str) -> Iterator[SubmittedJob | Unread]:
    """Records under `root`, then those elsewhere that this machine has pointers to.

    What lies in buckets is read together, and given up after `PATIENCE` seconds.
    """
    places = []
    if store.is_local(root) and store.local(root).is_dir():
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
            answers[place] = Unread(place, " ".join(str(error).split()))

    asked = {p: Thread(target=ask, args=(p,), daemon=True) for p in places if not store.is_local(p)}
    for thread in asked.values():
        thread.start()
    end = time.monotonic() + PATIENCE
    for place in places:
        if place in asked:
            asked[place].join(max(0.0, end - time.monotonic()))
        else:
            ask(place)
        gone = Unread(place, f"no answer within {PATIENCE:.0f} s: check endpoint and network")
        yield answers.get(place, gone)


def pointers() -> Path:
    return cache_dir() / "jobs"
