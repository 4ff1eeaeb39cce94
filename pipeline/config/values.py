"""Texts in a configuration that have a form of their own, such as tasks, rectangles, names."""

from __future__ import annotations

import re

from pipeline.common.errors import ConfigError


def task(text: str | None) -> tuple[int, int]:
    """Return I and N of `task=I/N`."""
    index, _, number = (text or "0/1").partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise ConfigError(f"invalid task={text}: expected I/N with 0 <= I < N, such as task=0/8")
    return int(index), int(number)


def checkpoints_to_keep(text: str) -> set[str]:
    """Return the checkpoints that `runs prune keep=` names."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    if not words or not words <= {"best", "last"}:
        raise ConfigError(f"keep={text} is not allowed: expected best, last or best,last")
    return words


def rectangle(mask: str) -> tuple[int, int, int, int] | None:
    """Return x, y, w and h of a `mask=` that gives numbers; None for a file or folder."""
    if not re.fullmatch(r"[\s\[(]*[-+\d.\s]+([,;][-+\d.\s]*)+[\])]?\s*", mask):
        return None
    match = re.fullmatch(r"[\s\[(]*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[\])]?\s*", mask)
    if match is None:
        raise ConfigError(f"mask={mask}: a rectangle is x,y,w,h in whole pixels, as in 10,10,20,20")
    return tuple(int(x) for x in match.groups())  # type: ignore[return-value]


def checked_model(model: str | None) -> None:
    """Raise ConfigError for a `models:` URL that names no version of a registered model."""
    if model is not None and model.startswith("models:"):
        registered(model)


def registered(uri: str) -> tuple[str, str | None, str | None]:
    """Return name, alias and version of `models:/NAME@ALIAS`, `/NAME/VERSION` or `/NAME`."""
    parsed = re.fullmatch(r"models:/+([^/@]+)(?:@([^/]+)|/(\d+|latest))?", uri)
    if parsed is None:
        raise ConfigError(f"invalid {uri}: expected models:/NAME@champion or models:/NAME/VERSION")
    return checked_name(parsed[1]), parsed[2], parsed[3]


def checked_name(name: str) -> str:
    """Return the name; ConfigError if it cannot name a registered model."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(
            f"invalid name of a registered model {name!r}: expected letters, digits, '.', '_' and "
            "'-', such as inpaint-msanet"
        )
    return name
