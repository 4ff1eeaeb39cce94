"""What a user wrote and cannot be: the error for it, and the secrets among it."""

from __future__ import annotations

import os
import re
from typing import Any

from jobs.spec import SECRET_NAME
from pipeline.common.errors import ConfigError

ASSIGNED = [
    (re.compile(r"(?i)([\w.-]*(?:passw(?:or)?d|secret|token|api_?key|access_?key|private_?key)"
                r"[\w.-]*[\"']?\s*[:=]\s*[\"']?)([^\s\"',;&]{6,})"), r"\1***"),
]  # fmt: skip
SHAPES = [
    (re.compile(r"(\w+://)[^/\s:@]*:[^/\s@]+@"), r"\1***@"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), "***"),
    (re.compile(r"\b(ghp|gho|ghs|github_pat|glpat|hf|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}"), "***"),
    (re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9+/=._-]{12,}"), r"\1 ***"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S),
     "***"),
]  # fmt: skip


TEXTS = ("cluster.setup", "cluster.sbatch", "cluster.patch", "cluster.env")  # that stand in jobs
# NAME=value and --name value. `$NAME`, `$(command)`, `<file` name no secret.
ASSIGNMENT = re.compile(r"([\w-]+(?==)|--[\w-]+(?= ))[= ][\"']?(?![$`<=&|;-])[^\s\"']")


def refuse_secret(name: str, value: Any) -> None:
    """Secrets live in the environment or a mounted file, never in what is logged or rendered."""
    if isinstance(value, dict) and isinstance(value.get("value"), str):  # of a pod's environment
        refuse_secret(name, f"{value.get('name')}={value['value']}")
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_secret(name, item)
    if not isinstance(value, str):
        return
    where = f"{name} holds a secret: keep it in the environment (see `doctor`), not in the config"
    if re.search(r"://[^/@\s]+:[^/@\s]+@|[?&](?i:token|sig|key)=", value):
        raise ConfigError(where)
    if name in TEXTS:
        _refuse_literal(name, value)
    for variable, secret in os.environ.items():
        if SECRET_NAME.search(variable) and len(secret) >= 8 and secret in value:
            raise ConfigError(where)


def _refuse_literal(name: str, text: str) -> None:
    named = [n for n in ASSIGNMENT.findall(text) if SECRET_NAME.match(n.replace("-", "_"))]
    keys = [found[0] for pattern, _ in SHAPES for found in pattern.finditer(text)]
    if named or any(re.search(r"[A-Za-z0-9]{16}", key) for key in keys):  # no name with dashes
        shown = f"{named[0].lstrip('-')}=…" if named else "what looks like a key or token"
        raise ConfigError(
            f"{name} holds a secret as plain text ({shown}): write NAME=value into the file of "
            "cluster.secrets_file (Kubernetes: a Secret named in cluster.secrets) and say $NAME"
        )


def redact(text: str) -> str:
    """`text` with passwords, keys and tokens as `***`; secrets of the environment too."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    for pattern, replacement in (*ASSIGNED, *SHAPES):
        text = pattern.sub(replacement, text)
    return text
