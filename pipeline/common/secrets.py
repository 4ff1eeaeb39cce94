"""Secrets in what a user wrote: refused in a configuration, removed from what is recorded.

Which names are names of secrets is decided in one place, `jobs.spec.SECRETS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from jobs.spec import SECRET_NAME, SECRETS
from pipeline.common.errors import ConfigError

# A "/" in a password is malformed, but printing that password would be worse. Digits and "/" are
# a port.
LOGIN = r"(\w+://)[^\s:@/]*:(?!\d{1,5}[/?#])[^\s@\"']+@"
QUERY = rf"([?&](?:[\w-]*sig(?:nature)?|key|{SECRETS})=)"
KEYS = "|".join((
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\b(ghp|gho|ghs|github_pat|glpat|hf|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}",
    r"(?i:\b(bearer|basic) )[A-Za-z0-9+/=._-]{12,}",
    r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----)",
))  # fmt: skip
REDACTED = [
    (re.compile(rf"({SECRETS}[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]{{6,}}", re.I), r"\1***"),
    (re.compile(rf"{QUERY}[^\s&]+", re.I), r"\1***"),
    (re.compile(LOGIN), r"\1***@"),
    (re.compile(KEYS), "***"),
]

FREE_TEXT = ("cluster.setup", "cluster.sbatch", "cluster.patch", "cluster.env")  # copied into jobs
# NAME=value and --name value. `$NAME`, `$(command)` and `<file` are references, not secrets.
ASSIGNMENT = re.compile(r"([\w-]+(?==)|--[\w-]+(?= ))[= ][\"']?(?![$`<=&|;-])[^\s\"']")


def refuse_secret(name: str, value: Any) -> None:
    """Raise ConfigError where the value of the key `name` holds a secret.

    A configuration is logged and rendered into jobs; secrets live in the environment or in a file.
    """
    if isinstance(value, dict) and isinstance(value.get("value"), str):  # of a pod's environment
        refuse_secret(name, f"{value.get('name')}={value['value']}")
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_secret(name, item)
    if not isinstance(value, str):
        return
    if name in FREE_TEXT:
        _refuse_literal(name, value)
    if re.search(f"{LOGIN}|{QUERY}", value, re.I) or any(_from_environment(value, least=8)):
        raise ConfigError(
            f"{name} holds a secret: keep it in the environment (see `doctor`), not in the config"
        )


def _refuse_literal(name: str, text: str) -> None:
    """Refuse a secret that is written out in text which becomes part of a job."""
    named = [n for n in ASSIGNMENT.findall(text) if SECRET_NAME.match(n)]
    keys = [match[0] for match in re.finditer(KEYS, text)]
    # A key has 16 letters and digits in a row; `sk-learn-environment-2024` only looks like one.
    if named or any(re.search(r"[A-Za-z0-9]{16}", key) for key in keys):
        shown = f"{named[0].lstrip('-')}=…" if named else "what looks like a key or token"
        raise ConfigError(
            f"{name} holds a secret as plain text ({shown}): write NAME=value into the file of "
            "cluster.secrets_file (Kubernetes: a Secret named in cluster.secrets) "
            "and refer to it as $NAME"
        )


def redact(text: str) -> str:
    """Replace passwords, keys and tokens in `text` by `***`, those of the environment too."""
    for value in sorted(_from_environment(text, least=6), key=len, reverse=True):
        text = text.replace(value, "***")
    for pattern, replacement in REDACTED:
        text = pattern.sub(replacement, text)
    return text


def _from_environment(text: str, least: int) -> Iterator[str]:
    """Yield the values of secret variables that `text` holds, from `least` characters on."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= least and value in text:
            yield value
