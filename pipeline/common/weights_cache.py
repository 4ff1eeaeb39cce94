"""Files of published weights, as `fetch` writes them into the user's cache."""

import hashlib
import json
import os
from typing import Any

from safetensors import SafetensorError, deserialize

from pipeline.common.errors import one_line


def folder() -> str:
    """Return the absolute path of the folder that `fetch` writes to."""
    from pipeline.common.environment import cache_dir

    return os.path.abspath(cache_dir() / "weights")


def header(data: bytes) -> dict[str, Any]:
    """Return a safetensors file's header: of each tensor its shape and more."""
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def facts(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    return dict(header(data).get("__metadata__") or {})


def digest(data: bytes) -> str:
    """Return the sha256 of a safetensors file's tensors, without its metadata."""
    return hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def damage(data: bytes) -> str | None:
    """Return what is wrong with the file; None: nothing."""
    try:
        deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        return one_line(error)[:120]
    expected = facts(data).get("tensors", digest(data))  # files of earlier versions lack it
    return None if expected == digest(data) else "its tensors are not those that were fetched"
