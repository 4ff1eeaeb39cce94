"""Fields of the schema: a default, a help text, and what values are allowed."""

from __future__ import annotations

from dataclasses import field
from functools import partial
from typing import Any


def key(
    default: Any,
    help: str,
    choices: tuple[Any, ...] = (),
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    path: str | None = None,
) -> Any:
    """Return a field with its help text, choices or range (of a list: of each element) and,
    if it holds a path or URL, the kind of it."""
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "below": below}
    metadata["path"] = path
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Keys that hold the path or URL of what is read, of what is written, and of what is read or a name.
reads, writes, may_read = (partial(key, path=kind) for kind in ("read", "written", "read or name"))
