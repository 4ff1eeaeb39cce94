"""The code a job runs: the commit as `git archive` has it, never the live checkout.

Uncommitted changes and files that git does not know are refused, or taken along as a commit of
their own, made through an index and objects of its own (nothing of the checkout is written), with
the diff kept beside it.
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

NEW_MB = 20  # of files that git does not know: more is no code
# Its time and author are fixed: the same changes are the same bytes.
WHO = {"NAME": "lacuna", "EMAIL": "lacuna", "DATE": "@1000000000 +0000"}
AS = {f"GIT_{who}_{what}": WHO[what] for who in ("AUTHOR", "COMMITTER") for what in WHO}


@dataclass(frozen=True)
class Snapshot:
    """`commit` is HEAD, `diff` what was changed since and travels along, `tar` both in one."""

    root: Path
    commit: str
    diff: str = ""
    tar: bytes = b""

    @property
    def recorded(self) -> bytes:
        """The diff as git wrote it, whatever the encoding of the files."""
        return self.diff.encode(errors="surrogateescape")

    @property
    def name(self) -> str:
        """12 hex digits of the commit; with changes, `-` and 8 of the diff's sha256."""
        changed = f"-{hashlib.sha256(self.recorded).hexdigest()[:8]}" if self.diff else ""
        return self.commit[:12] + changed


def take(root: Path, allow_dirty: bool = False) -> Snapshot:
    """The state of the checkout at `root`. `SubmitError` if it is none, or has unwanted changes."""
    commit = _git(root, "rev-parse", "--verify", "HEAD").strip()
    changed = _git(root, "status", "--porcelain", "--untracked-files=all").splitlines()
    if not changed:
        return Snapshot(root, commit)
    if not allow_dirty:
        names = ", ".join(line[3:] for line in changed[:3]) + (", …" if len(changed) > 3 else "")
        raise SubmitError(
            f"uncommitted changes ({names}): commit them, or take them along as a recorded diff "
            "with cluster.allow_dirty=true"
        )
    _refuse_large(root)
    with tempfile.TemporaryDirectory() as scratch:
        known = root / _git(root, "rev-parse", "--git-path", "objects").strip()
        own = {"GIT_INDEX_FILE": f"{scratch}/index", "GIT_OBJECT_DIRECTORY": scratch,
               "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.path.abspath(known), **AS}  # fmt: skip
        _git(root, "read-tree", "HEAD", **own)
        _git(root, "add", "--all", **own)
        tree = _git(root, "write-tree", **own).strip()
        diff = _git(root, "diff", "--binary", commit, tree, **own)
        refuse_secrets(diff)
        words = ("commit-tree", tree, "-p", commit, "-m", "uncommitted changes")
        return Snapshot(root, commit, diff, _tar(root, _git(root, *words, **own).strip(), **own))


def _refuse_large(root: Path) -> None:
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    sizes = {name: os.lstat(root / name).st_size for name in filter(None, listed)}
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
    tar = snapshot.tar or _tar(snapshot.root, snapshot.commit)
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


def _tar(root: Path, commit: str, **environment: str) -> bytes:
    return _call(root, "archive", "--format=tar", commit, **environment)


def _git(root: Path, *words: str, **environment: str) -> str:
    return _call(root, *words, **environment).decode(errors="surrogateescape")


def _call(root: Path, *words: str, **environment: str) -> bytes:
    # Without optional locks git does not refresh the index of a checkout that it is asked about.
    ours = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **environment}
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, env=ours)
    except OSError as error:
        raise SubmitError(
            f"git cannot be run ({error.strerror}), which takes the commit of {root}: install it, "
            "or set cluster.code=image"
        ) from None
    if done.returncode == 0:
        return done.stdout
    told = " ".join(done.stderr.decode(errors="replace").split())
    if "not a git repository" in told:
        told = f"{root} is no git checkout, so there is no commit to submit"
    raise SubmitError(f"{told}: mend that, or set cluster.code=image")
