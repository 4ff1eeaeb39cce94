"""The code a job runs: the commit as `git archive` has it, never the live checkout.

Uncommitted changes are refused, or taken along as a commit of their own (`git stash create`, which
touches neither tree nor index) with the diff kept beside it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.spec import SECRET_NAME, SubmitError


@dataclass(frozen=True)
class Snapshot:
    """`commit` is HEAD, `diff` what was changed since and travels along."""

    root: Path
    commit: str
    diff: str = ""

    @property
    def name(self) -> str:
        """12 hex digits of the commit; with changes, `-` and 8 of the diff's sha256."""
        changed = f"-{hashlib.sha256(self.diff.encode()).hexdigest()[:8]}" if self.diff else ""
        return self.commit[:12] + changed


def take(root: Path, allow_dirty: bool = False) -> Snapshot:
    """The state of the checkout at `root`. `SubmitError` if it is none, or has unwanted changes."""
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        raise SubmitError(
            f"{root} is no git checkout, so there is no commit to submit: set cluster.code=image"
        ) from None
    changed = _git(root, "status", "--porcelain").splitlines()
    if not changed:
        return Snapshot(root, commit)
    if not allow_dirty:
        names = ", ".join(line[3:] for line in changed[:3]) + (", …" if len(changed) > 3 else "")
        raise SubmitError(
            f"uncommitted changes ({names}): commit them, or take them along as a recorded diff "
            "with cluster.allow_dirty=true"
        )
    diff = _git(root, "diff", "--binary", "HEAD")
    refuse_secrets(diff)
    return Snapshot(root, commit, diff)


def refuse_secrets(diff: str) -> None:
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 8 and value in diff:
            raise SubmitError(f"the uncommitted changes hold the value of ${name}: remove it there")


def archive(snapshot: Snapshot) -> bytes:
    """HEAD and the diff as .tar.gz, the same bytes for the same tree; unknown files stay behind."""
    tree = _git(snapshot.root, "stash", "create").strip() if snapshot.diff else ""
    tar = subprocess.run(
        ["git", "-C", str(snapshot.root), "archive", "--format=tar", tree or snapshot.commit],
        check=True,
        capture_output=True,
    ).stdout
    return gzip.compress(tar, compresslevel=6, mtime=0)


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


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    ).stdout
