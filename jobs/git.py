"""Every call of git: what it is asked, and what a user's configuration may not decide.

Objects are made and compared in a repository of its own, beside the checkout's objects: no
external diff, text conversion, filter, line ending, attribute or replaced object of the user's has
a say there. Of the checkout itself only names are asked: its commit, its objects, and its files.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Who may be trusted and where repositories are sought; the rest of GIT_* names another repository
# (a hook's GIT_DIR), or how things are shown.
KEPT = ("GIT_CONFIG_", "GIT_EXEC_PATH", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_")
# Without optional locks git does not refresh the index of a checkout that it is asked about.
OURS = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}
UNCONFIGURED = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_COUNT": "0", "GIT_CONFIG_PARAMETERS": "",
                "GIT_ATTR_NOSYSTEM": "1"}  # fmt: skip
PATIENCE = 120.0  # seconds


def call(root: Path, *words: str, stdin: str = "", **environment: str) -> bytes:
    """What git prints. Raises `OSError`, or `SubprocessError`."""
    inherited = {k: v for k, v in os.environ.items() if k[:4] != "GIT_" or k.startswith(KEPT)}
    return subprocess.run(
        ["git", "-C", str(root), "-c", "core.fsmonitor=false", *words],
        input=stdin.encode(errors="surrogateescape"),
        capture_output=True,
        env={**inherited, **OURS, **environment},
        timeout=PATIENCE,
        check=True,
    ).stdout


def text(root: Path, *words: str, **environment: str) -> str:
    """`call`, whatever the encoding of names and files."""
    return call(root, *words, **environment).decode(errors="surrogateescape")


def commit(root: Path) -> str:
    return text(root, "rev-parse", "--verify", "HEAD").strip()


def unknown(root: Path) -> list[str]:
    """Files that git does not know; which ones it is to ignore is the user's to say."""
    return _names(text(root, "ls-files", "--others", "--exclude-standard", "-z"))


@contextmanager
def apart(root: Path) -> Iterator[dict[str, str]]:
    """The environment of a repository of its own that holds HEAD's tree as its index and reads the
    checkout's files and objects. Nothing is written to the checkout."""
    objects = root / text(root, "rev-parse", "--git-path", "objects").strip()
    top = text(root, "rev-parse", "--show-toplevel").removesuffix("\n")
    with tempfile.TemporaryDirectory() as scratch:
        call(root, "init", "-q", "--bare", "--template=", scratch, **UNCONFIGURED)
        # A list of folders in the environment would be split at a colon.
        (Path(scratch) / "objects" / "info").mkdir(exist_ok=True)
        alternates = Path(scratch) / "objects" / "info" / "alternates"
        alternates.write_bytes(os.fsencode(os.path.abspath(objects)) + b"\n")
        own = {"GIT_DIR": scratch, "GIT_WORK_TREE": top, **UNCONFIGURED}
        call(root, "read-tree", commit(root), **own)
        yield own


def tree(root: Path, own: dict[str, str], new: list[str]) -> str:
    """The tree of the files as they are now, with those of `new` that git does not know."""
    staged = set(_names(text(root, "ls-files", "-z")))
    staged -= set(_names(text(root, "ls-files", "-z", **own)))
    call(root, "add", "--update", **own)
    names = "".join(f"{name.rstrip('/')}\0" for name in sorted({*staged, *new}))
    call(root, "update-index", "--add", "--remove", "-z", "--stdin", stdin=names, **own)
    return text(root, "write-tree", **own).strip()


def changed(root: Path, before: str, after: str, own: dict[str, str]) -> list[str]:
    """Names of the files that two trees do not share."""
    return _names(text(root, "diff-tree", "-r", "--name-only", "-z", before, after, **own))


def diff(root: Path, before: str, after: str, own: dict[str, str]) -> str:
    """What `git apply` makes the second tree of the first with."""
    return text(root, "diff-tree", "-p", "--binary", "--full-index", before, after, **own)


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]
