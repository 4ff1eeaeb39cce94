"""Temporary folders that another user reads: pytest keeps what it makes to its own user."""

from __future__ import annotations

from pathlib import Path

PASS = 0o011  # for its group too: pods run in group 0, which is root's


def let_others_reach(folder: Path, mode: int = 0o755) -> Path:
    """Give `folder` this mode and let every user pass through the folders above it."""
    folder.chmod(mode)
    for parent in folder.parents:
        if (found := parent.stat().st_mode) & PASS != PASS:
            parent.chmod(found | PASS)
    return folder
