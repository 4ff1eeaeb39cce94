"""What a refused submission leaves: the files that were there as they were, and none of its own.

Each function registers what `undo` does when it unwinds; none removes what it did not write.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from pipeline.runs.folder import read_run_json
from shards import store


def keep(undo: ExitStack, url: str) -> None:
    """The file is again what it is now, or again not there."""
    try:
        undo.callback(store.write, url, store.read(url))
    except (FileNotFoundError, NotADirectoryError):
        undo.callback(store.remove, url)


def keep_place(undo: ExitStack, place: str, names: Sequence[str]) -> None:
    """Of a job's or run's folder: these files, run.json, notes of jobs that are none, folders."""
    logs, blank = store.join(place, "logs"), not store.exists(store.join(place, "run.json"))
    undo.callback(_drop_empty, place)
    undo.callback(_drop_notes, logs, set(store.names(logs)))
    if blank:
        undo.callback(_drop_blank, place)
    for name in names:
        keep(undo, store.join(place, name))


def keep_code(undo: ExitStack, url: str) -> None:
    """An unpacked commit, or its archive, goes unless it was there: its name tells what it is."""
    if not store.exists(url):
        undo.callback(store.remove, url, recursive=store.is_local(url))


def _drop_blank(place: str) -> None:
    """A run.json in which nothing is left once the MLflow run was taken back."""
    if not read_run_json(place):
        store.remove(store.join(place, "run.json"))
        store.remove(store.join(place, ".run.json.lock"))


def _drop_notes(logs: str, before: set[str]) -> None:
    for name in store.names(logs):
        if name.startswith("state-") and name not in before:
            store.remove(store.join(logs, name))


def _drop_empty(place: str) -> None:
    for name in ("logs", "code", "weights") if store.is_local(place) else ():
        with suppress(OSError):
            os.rmdir(store.local(place) / name)
