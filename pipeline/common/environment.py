"""What this process finds around it: user, processor, cores."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Where downloads and records that can be made again are kept: `$XDG_CACHE_HOME/lacuna`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lacuna"


def config_dir() -> Path:
    """The user's own configuration: `$XDG_CONFIG_HOME/lacuna`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lacuna"


def core_count() -> int:
    """CPU cores that this process may use; macOS does not say, and has them all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user() -> str:
    """The account's name; its number where it has none, as in a pod."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return found.group(1) if found else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
