"""A run's folder: where it is, what it holds, what is copied to its URL, and who may write it.

`run=` is a folder or an s3:// URL. Work happens in a local folder; for a URL that is a folder
under the cache, and `publish` copies what must survive this machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.common.environment import cache_dir
from pipeline.common.locks import hold, is_leased, is_locked, leased, sign
from pipeline.runs.checkpoints import images_saved
from pipeline.runs.run_json import read_run_json
from shards import files, store

APPENDED = ("steps.jsonl", "spool/")  # without a sync at each write
SUBMITTING = ".submit.lock"  # lock of a job that is being submitted


def folders(root: str) -> list[Path]:
    """List run folders at most three levels below `root`: those with a `run.json`."""
    if not store.is_local(root) or not store.local(root).is_dir():
        raise ValueError(
            f"root={store.display(root)} is not a local folder: give the folder that holds the runs"
        )
    top = store.local(root)
    return sorted(path.parent for depth in range(4) for path in top.glob("*/" * depth + "run.json"))


@dataclass(frozen=True)
class RunFolder:
    """A run: `url` is what the user named, `local` where this process reads and writes.

    `config`, `facts` and `images_saved` are read once, when first used, and stay as they were then:
    open a run once for each command and hand it down.
    """

    url: str
    local: Path
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return store.name(self.url)

    @cached_property
    def config(self) -> Any:
        """The saved config.yaml; None where there is none."""
        return saved_config(self.url)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json; `{}` where there is none."""
        return read_run_json(self.url)

    @cached_property
    def images_saved(self) -> int:
        """`images_seen` of the newest checkpoint; 0 where there is none."""
        return images_saved(self.url)

    def publish(self) -> None:
        """Copy changed files to the URL; checkpoints and run.json are written there directly.

        On a disk sync what is only appended: steps and tracking events.
        """
        local = store.is_local(self.url)
        folders: set[Path] = set()
        # What was sent is removed meanwhile, files and folders; os.walk passes over these.
        found = [Path(top, name) for top, _, names in os.walk(self.local) for name in names]
        for path in sorted(found):
            name = path.relative_to(self.local).as_posix()
            hidden = f"/{name}".count("/.")  # the lock, and files being written
            if hidden or name == "run.json" or not path.is_file():
                continue
            if local and not name.startswith(APPENDED):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                state = status.st_mtime_ns, status.st_size
                if self._sent.get(name) == state:
                    continue
                if local:
                    files.sync_path(path)
                    folders.add(path.parent)
                else:
                    store.upload(store.join(self.url, name), path)
                self._sent[name] = state
        for folder in folders:
            with suppress(FileNotFoundError):
                files.sync_folder(folder)


def folder_at(url: str) -> RunFolder:
    """Open a run by its path or URL."""
    if store.is_local(url):
        return RunFolder(url, store.local(url).absolute())
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return RunFolder(url, cache_dir() / "runs" / digest)


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Lock the run for writing; ConfigError, naming the other process, while another holds it.

    A folder that is empty at the end, but for the lock, is removed.
    """
    path = run.local / ".lock"
    with ExitStack() as stack:
        handle = stack.enter_context(hold(path, f"run={store.display(run.url)}"))
        if not store.is_local(run.url):
            stack.enter_context(leased(run.url))
        sign(handle)
        try:
            yield
        finally:
            if set(os.listdir(run.local)) <= {path.name, SUBMITTING}:
                files.remove(path)
                with suppress(OSError):
                    run.local.rmdir()


def is_held(url: str) -> bool:
    """Return whether a live process holds the run; in a bucket the answer may take a minute."""
    if not store.is_local(url):
        return is_leased(url)
    return is_locked(store.local(url) / ".lock")


def sheet_name(images_seen: int) -> str:
    """Return the place in a run's folder of a validation's contact sheet."""
    return f"samples/{images_seen:012d}.png"


def saved_config(url: str) -> Any:
    """Read a run's config.yaml; None where there is none."""
    try:
        return OmegaConf.create(store.read(store.join(url, "config.yaml")).decode())
    except FileNotFoundError:
        return None
