"""Take a snapshot of the code for a job: `git archive` of the commit, never the live checkout.

Uncommitted changes and untracked files are refused, or included as a commit of their own, which is
created in a temporary repository (the checkout stays unchanged), and recorded as a diff.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs import git
from jobs.spec import SECRET_NAME, SubmitError

UNTRACKED_MB = 20  # limit of untracked files; larger ones are probably data
# Time and author are fixed, so that the same changes give the same bytes.
AUTHOR = {"NAME": "lacuna", "EMAIL": "lacuna", "DATE": "@1000000000 +0000"}
IDENTITY = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in AUTHOR.items()}


@dataclass(frozen=True)
class Snapshot:
    """HEAD's `commit`, the `diff` of included changes, `tar` and `tree` (git's hash) of both."""

    root: Path
    commit: str
    diff: str = ""
    tar: bytes = b""
    tree: str = ""

    @property
    def recorded(self) -> bytes:
        """The diff as bytes, whatever the encoding of the files."""
        return self.diff.encode(errors="surrogateescape")

    @property
    def name(self) -> str:
        """12 hex digits of the commit; with changes also `-` and 8 digits of the tree."""
        return self.commit[:12] + (f"-{self.tree[:8]}" if self.diff else "")


def take(root: Path, allow_dirty: bool = False) -> Snapshot:
    """Take a snapshot of the checkout. Raises `SubmitError` for unwanted changes."""
    with _git_errors(root), git.temporary_repository(root) as own:
        new = git.untracked(root)
        if allow_dirty:
            _refuse_large(root, new)
        commit, tree = git.commit(root), git.tree(root, own, new if allow_dirty else [])
        changed = git.changed(root, commit, tree, own) + (new if not allow_dirty else [])
        if not changed:
            return Snapshot(root, commit, tar=_tar(root, commit, own))
        if not allow_dirty:
            names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
            raise SubmitError(
                f"uncommitted changes ({names}): commit them, or include them as a recorded "
                "diff with cluster.allow_dirty=true"
            )
        diff = git.diff(root, commit, tree, own)
        refuse_secrets(diff)
        arguments = ("commit-tree", tree, "-p", commit, "-m", "uncommitted changes")
        whole = git.text(root, *arguments, **own, **IDENTITY).strip()
        return Snapshot(root, commit, diff, _tar(root, whole, own), tree)


def _refuse_large(root: Path, new: list[str]) -> None:
    sizes = {name: os.lstat(root / name).st_size for name in new}
    if sum(sizes.values()) > UNTRACKED_MB * 1e6:
        worst = max(sizes, key=lambda name: sizes[name])
        raise SubmitError(
            f"untracked files have {sum(sizes.values()) / 1e6:.0f} MB (limit {UNTRACKED_MB} MB), "
            f"the largest is {worst}: add them to .gitignore or commit them"
        )


def refuse_secrets(diff: str) -> None:
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 8 and value in diff:
            raise SubmitError(f"the uncommitted changes contain the value of ${name}: remove it")


def archive(snapshot: Snapshot) -> bytes:
    """Return the snapshot as .tar.gz: the same bytes for the same tree."""
    return gzip.compress(snapshot.tar, compresslevel=6, mtime=0)


def importable(folder: str, where: str) -> str:
    """Return the folder if PYTHONPATH can hold it. `where`: the key and value that name it."""
    if os.pathsep in folder:
        raise SubmitError(
            f"{where}: the job's code would be in {folder}, and PYTHONPATH is split at "
            f"{os.pathsep!r}, so other code could run: choose a path without {os.pathsep!r}"
        )
    return folder


def unpack(data: bytes, folder: Path) -> Path:
    """Unpack into `folder` atomically; an existing folder is kept."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".code-") as scratch:
        fresh = Path(scratch) / "code"
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            tar.extractall(fresh, filter="data")
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _tar(root: Path, commit: str, own: dict[str, str]) -> bytes:
    return git.call(root, "archive", "--format=tar", commit, **own)


@contextmanager
def _git_errors(root: Path) -> Iterator[None]:
    """Turn a failure of git into a `SubmitError` of one line."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        message = " ".join(error.stderr.decode(errors="replace").split())
        if "not a git repository" in message:
            message = f"{root} is not a git checkout, so there is no commit to submit"
        raise SubmitError(f"{message}: fix that, or set cluster.code=image") from None
    except subprocess.TimeoutExpired as error:
        raise SubmitError(
            f"git did not answer within {error.timeout:.0f} s in {root}: try again, or set "
            "cluster.code=image"
        ) from None
    except OSError as error:
        if error.filename != "git":
            raise
        raise SubmitError(
            f"git cannot be run ({error.strerror}), and the commit of {root} is needed: install "
            "git, or set cluster.code=image"
        ) from None
