"""Call git independently of the user's configuration.

Objects are created and compared in a temporary repository that borrows the checkout's objects: no
external diff, text conversion, filter, line ending, attribute or replaced object of the user
applies there. The checkout is asked only for its commit, its object folder and its file names.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Trust and the search for repositories. Other GIT_* variables name another repository (GIT_DIR in
# a hook) or change the output.
INHERITED = ("GIT_CONFIG_", "GIT_EXEC_PATH", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_")
# Without optional locks a query does not refresh the index of the checkout.
FIXED = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}
UNCONFIGURED = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_COUNT": "0", "GIT_CONFIG_PARAMETERS": "",
                "GIT_ATTR_NOSYSTEM": "1"}  # fmt: skip
TIMEOUT = 120.0  # seconds


def call(root: Path, *arguments: str, stdin: str = "", **environment: str) -> bytes:
    """Return git's output. Raises OSError or SubprocessError."""
    inherited = {k: v for k, v in os.environ.items() if k[:4] != "GIT_" or k.startswith(INHERITED)}
    return subprocess.run(
        ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments],
        input=stdin.encode(errors="surrogateescape"),
        capture_output=True,
        env={**inherited, **FIXED, **environment},
        timeout=TIMEOUT,
        check=True,
    ).stdout


def text(root: Path, *arguments: str, **environment: str) -> str:
    """Return git's output as text, whatever the encoding of names and files."""
    return call(root, *arguments, **environment).decode(errors="surrogateescape")


def commit(root: Path) -> str:
    return text(root, "rev-parse", "--verify", "HEAD").strip()


def untracked(root: Path) -> list[str]:
    """Return untracked files, without those that the user's configuration ignores."""
    return _names(text(root, "ls-files", "--others", "--exclude-standard", "-z"))


@contextmanager
def temporary_repository(root: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a temporary repository with HEAD's tree as its index.

    It reads the checkout's files and objects, and writes nothing to the checkout.
    """
    objects = root / text(root, "rev-parse", "--git-path", "objects").strip()
    top = text(root, "rev-parse", "--show-toplevel").removesuffix("\n")
    with tempfile.TemporaryDirectory() as scratch:
        call(root, "init", "-q", "--bare", "--template=", scratch, **UNCONFIGURED)
        # A file, for a list of folders in the environment is split at colons.
        (Path(scratch) / "objects" / "info").mkdir(exist_ok=True)
        alternates = Path(scratch) / "objects" / "info" / "alternates"
        alternates.write_bytes(os.fsencode(os.path.abspath(objects)) + b"\n")
        own = {"GIT_DIR": scratch, "GIT_WORK_TREE": top, **UNCONFIGURED}
        call(root, "read-tree", commit(root), **own)
        yield own


def tree(root: Path, own: dict[str, str], new: list[str]) -> str:
    """Return the tree of the files as they are now, with the untracked ones in `new`."""
    staged = set(_names(text(root, "ls-files", "-z")))
    staged -= set(_names(text(root, "ls-files", "-z", **own)))
    call(root, "add", "--update", **own)
    names = "".join(f"{name.rstrip('/')}\0" for name in sorted({*staged, *new}))
    call(root, "update-index", "--add", "--remove", "-z", "--stdin", stdin=names, **own)
    return text(root, "write-tree", **own).strip()


def changed(root: Path, before: str, after: str, own: dict[str, str]) -> list[str]:
    """Return the names of files that differ between two trees."""
    return _names(text(root, "diff-tree", "-r", "--name-only", "-z", before, after, **own))


def diff(root: Path, before: str, after: str, own: dict[str, str]) -> str:
    """Return the diff with which `git apply` turns the first tree into the second."""
    return text(root, "diff-tree", "-p", "--binary", "--full-index", before, after, **own)


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]
