"""The error for what a user gave."""

from __future__ import annotations


class ConfigError(ValueError):
    """Something the user wrote cannot be: one line that says what to write instead."""
