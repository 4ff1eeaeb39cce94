"""Of what several processes said when they ended, the line that the others' ends follow from."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a process says whose peer is gone, or that was ended for its sake. SIGABRT is how a rank ends
# whose NCCL watchdog has waited for a peer.
FOLLOWS = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|a node is gone|timed ?out"
    r"|remote ?error|communicator was aborted|SIGABRT|SIGTERM|terminated|got 0 bytes|gloo",
    re.I,
)


def follows(line: str) -> bool:
    """Whether it speaks of somebody else's end."""
    return bool(FOLLOWS.search(line))


def cause(told: Iterable[tuple[float, str]]) -> str | None:
    """The earliest line of (time, line) that is a cause; the earliest of all where none is."""
    listed = sorted((follows(line), when, line) for when, line in told)
    return listed[0][2] if listed else None
