"""What a user wrote and cannot be: the error for it, and the secrets among it."""

from __future__ import annotations

import os
import re
from typing import Any

from jobs.spec import SECRET_NAME


class ConfigError(ValueError):
    """Something the user wrote cannot be: one line that says what to write instead."""


def refuse_secret(name: str, value: Any) -> None:
    """Secrets live in the environment or a mounted file, never in what is logged or rendered."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_secret(name, item)
    if not isinstance(value, str):
        return
    where = f"{name} holds a secret: keep it in the environment (see `doctor`), not in the config"
    if re.search(r"://[^/@\s]+:[^/@\s]+@|[?&](?i:token|sig|key)=", value):
        raise ConfigError(where)
    for variable, secret in os.environ.items():
        if SECRET_NAME.search(variable) and len(secret) >= 8 and secret in value:
            raise ConfigError(where)
