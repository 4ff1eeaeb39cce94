"""Choose the root cause among the last lines of several failed processes."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Errors of a process that lost its peer, or was stopped because of it. A rank ends with SIGABRT
# when its NCCL watchdog has waited for a peer.
CONSEQUENCE = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|a node is gone|timed ?out"
    r"|remote ?error|communicator was aborted|SIGABRT|SIGTERM|terminated|got 0 bytes|gloo",
    re.I,
)


def follows(line: str) -> bool:
    """Return whether the line reports the consequence of another process's failure."""
    return bool(CONSEQUENCE.search(line))


def cause(lines: Iterable[tuple[float, str]]) -> str | None:
    """Return from (time, line) the earliest cause, or without a cause the earliest line."""
    ordered = sorted((follows(line), when, line) for when, line in lines)
    return ordered[0][2] if ordered else None
