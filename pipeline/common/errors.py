"""Errors of what the user gave, and errors as one line of text."""

from __future__ import annotations


class ConfigError(ValueError):
    """Invalid user input; the message is one line that names the key, what is expected, the fix."""


def one_line(error: BaseException) -> str:
    """Return the error's text on one line, or the name of its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
