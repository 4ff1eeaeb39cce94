"""A run's folder: where it is, what of it is copied to its URL, and who may write it.

`run=` is a folder or an s3:// URL. Work happens in a local folder; for a URL that is a folder
under the cache, and `publish` copies what must survive this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common.environment import cache_dir
from pipeline.common.errors import ConfigError
from pipeline.common.locks import Held, hold, is_leased, leased, sign
from shards import store

SUBMITTING = ".submit.lock"  # of a job that is being submitted


def folders(root: str) -> list[Path]:
    """Run folders at most three levels below `root`: those with a `run.json`."""
    if not store.is_local(root):
        raise ValueError(f"{store.display(root)} is no local folder: give root= the folder of runs")
    top = Path(root)
    if not top.is_dir():
        raise ValueError(f"{root} is no folder: give root= the folder that holds the runs")
    found = [path.parent for depth in range(4) for path in top.glob("*/" * depth + "run.json")]
    return sorted(found)


@dataclass(frozen=True)
class RunFolder:
    """`url`: what the user named; `local`: where this process reads and writes."""

    url: str
    local: Path
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def publish(self) -> None:
        """Copy to the URL what changed since, but for checkpoints and run.json, written there."""
        if store.is_local(self.url):
            return
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            hidden = f"/{name}".count("/.")  # the lock, and what is being written
            if hidden or name == "run.json" or not path.is_file():
                continue
            found = path.stat()
            state = found.st_mtime_ns, found.st_size
            if self._sent.get(name) != state:
                store.upload(store.join(self.url, name), path)
                self._sent[name] = state


def folder_at(url: str) -> RunFolder:
    """The folder of a run by its path or URL."""
    if store.is_local(url):
        return RunFolder(url, store.local(url).absolute())
    cache = cache_dir() / "runs"
    return RunFolder(url, cache / hashlib.sha256(url.encode()).hexdigest()[:16])


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Hold the run for writing; a second live writer is refused, naming the first.

    A folder that holds nothing else in the end is removed.
    """
    path = run.local / ".lock"
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(hold(path))
        except Held as error:
            raise ConfigError(
                f"{run.url} is being trained by {error.owner}: wait, stop that one, or name "
                "another run="
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run={run.url} cannot be written ({error.strerror}): name another folder"
            ) from None
        if not store.is_local(run.url):
            stack.enter_context(leased(run.url))
        sign(handle)
        try:
            yield
        finally:
            if set(os.listdir(run.local)) <= {path.name, SUBMITTING}:
                path.unlink()
                with suppress(OSError):
                    run.local.rmdir()


def is_held(url: str) -> bool:
    """Whether somebody alive holds the run; of one in a bucket it may take a minute to tell."""
    if not store.is_local(url):
        return is_leased(url)
    try:
        with open(store.local(url) / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never held, or moved
        return False
    return False
