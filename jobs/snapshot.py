"""The code a job runs: the commit as `git archive` has it, never the live checkout.

Uncommitted changes and files that git does not know are refused, or taken along as a commit of
their own, made in a repository of its own (nothing of the checkout is written), with the diff kept
beside it.
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

NEW_MB = 20  # of files that git does not know: more is no code
# Its time and author are fixed: the same changes are the same bytes.
WHO = {"NAME": "lacuna", "EMAIL": "lacuna", "DATE": "@1000000000 +0000"}
AS = {f"GIT_{who}_{what}": WHO[what] for who in ("AUTHOR", "COMMITTER") for what in WHO}


@dataclass(frozen=True)
class Snapshot:
    """`commit` is HEAD, `diff` what was changed since and travels along, `tar` both in one, `tree`
    what git calls their content."""

    root: Path
    commit: str
    diff: str = ""
    tar: bytes = b""
    tree: str = ""

    @property
    def recorded(self) -> bytes:
        """The diff as git wrote it, whatever the encoding of the files."""
        return self.diff.encode(errors="surrogateescape")

    @property
    def name(self) -> str:
        """12 hex digits of the commit; with changes, `-` and 8 of the tree's."""
        return self.commit[:12] + (f"-{self.tree[:8]}" if self.diff else "")


def take(root: Path, allow_dirty: bool = False) -> Snapshot:
    """The state of the checkout at `root`. `SubmitError` if it is none, or has unwanted changes."""
    with _told(root), git.apart(root) as own:
        new = git.unknown(root)
        if allow_dirty:
            _refuse_large(root, new)
        commit, tree = git.commit(root), git.tree(root, own, new if allow_dirty else [])
        changed = git.changed(root, commit, tree, own) + (new if not allow_dirty else [])
        if not changed:
            return Snapshot(root, commit, tar=_tar(root, commit, own))
        if not allow_dirty:
            names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
            raise SubmitError(
                f"uncommitted changes ({names}): commit them, or take them along as a recorded "
                "diff with cluster.allow_dirty=true"
            )
        diff = git.diff(root, commit, tree, own)
        refuse_secrets(diff)
        words = ("commit-tree", tree, "-p", commit, "-m", "uncommitted changes")
        whole = git.text(root, *words, **own, **AS).strip()
        return Snapshot(root, commit, diff, _tar(root, whole, own), tree)


def _refuse_large(root: Path, new: list[str]) -> None:
    sizes = {name: os.lstat(root / name).st_size for name in new}
    if sum(sizes.values()) > NEW_MB * 1e6:
        worst = max(sizes, key=lambda name: sizes[name])
        raise SubmitError(
            f"files that git does not know hold {sum(sizes.values()) / 1e6:.0f} MB, the largest "
            f"{worst}: add them to .gitignore or commit them ({NEW_MB} MB travel along)"
        )


def refuse_secrets(diff: str) -> None:
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 8 and value in diff:
            raise SubmitError(f"the uncommitted changes hold the value of ${name}: remove it there")


def archive(snapshot: Snapshot) -> bytes:
    """The commit, or commit and changes, as .tar.gz: the same bytes for the same tree."""
    return gzip.compress(snapshot.tar, compresslevel=6, mtime=0)


def importable(folder: str, where: str) -> str:
    """The folder as an entry of PYTHONPATH. Raises `SubmitError`, with where it comes from."""
    if os.pathsep in folder:
        raise SubmitError(
            f"{where}: the job's code would lie in {folder}, and PYTHONPATH is split at "
            f"{os.pathsep!r}, so that other code could run: choose a path without it"
        )
    return folder


def unpack(data: bytes, folder: Path) -> Path:
    """Unpacks into `folder`, which appears whole or not at all; an existing one is left alone."""
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
def _told(root: Path) -> Iterator[None]:
    """What hinders git, as one line of ours."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        told = " ".join(error.stderr.decode(errors="replace").split())
        if "not a git repository" in told:
            told = f"{root} is no git checkout, so there is no commit to submit"
        raise SubmitError(f"{told}: fix that, or set cluster.code=image") from None
    except subprocess.TimeoutExpired as error:
        raise SubmitError(f"git gave no answer about {root} within {error.timeout:.0f} s") from None
    except OSError as error:
        if error.filename != "git":
            raise
        raise SubmitError(
            f"git cannot be run ({error.strerror}), which takes the commit of {root}: install it, "
            "or set cluster.code=image"
        ) from None
