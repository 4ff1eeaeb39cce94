"""User, processor, cores and folders of this process."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs import git
from pipeline.common.console import say
from pipeline.common.errors import ConfigError
from shards.store import expanded

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = "LACUNA_COMMAND"
RESTARTS_LEFT = "LACUNA_RESTARTS_LEFT"  # that a failure of this worker may lead to, in place


def command_line() -> str:
    """Return the command that the user ran; workers have it from their launcher."""
    return os.environ.get(COMMAND) or shlex.join(["python", *sys.orig_argv[1:]])


def commit(checkout: Path = CHECKOUT) -> str | None:
    """Return the commit of the running code, None if it is unknown."""
    if recorded := os.environ.get("LACUNA_COMMIT"):
        return recorded
    try:
        return git.commit(checkout)
    except (OSError, subprocess.SubprocessError):
        return None


def cache_dir() -> Path:
    """Return the folder of downloads and other reproducible files: `$XDG_CACHE_HOME/lacuna`."""
    return Path(expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "lacuna"


def config_dir() -> Path:
    """Return the folder of the user's configuration: `$XDG_CONFIG_HOME/lacuna`."""
    return Path(expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "lacuna"


def ensure_account() -> None:
    """Set HOME and LOGNAME where this account has none, as in a pod: libraries rely on both.

    The home is a private folder under TMPDIR. Raises ConfigError if that is another account's.
    """
    os.environ.setdefault("LOGNAME", user())
    if os.path.expanduser("~") == "~":
        home = Path(tempfile.gettempdir(), f"lacuna-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.lstat().st_uid != os.getuid():
            raise ConfigError(f"HOME is not set, and {home} is another account's: set HOME")
        os.environ["HOME"] = str(home)
        say(f"this account has no home folder: caches and settings are in {home} (or set HOME)")


def core_count() -> int:
    """Return the number of CPU cores that this process may use; on macOS all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count(name: str, text: str) -> int | None:
    """Return the number that `name=` gives; None for `auto`."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"invalid {name}={text}: expected a positive integer or auto")
    return int(text)


def user() -> str:
    """Return the account's name, or its number where it has none, as in a pod."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cpu_name() -> str:
    """Return the processor's model."""
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return model.group(1) if model else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
