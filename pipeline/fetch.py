"""`fetch`: pretrained weights into the cache, on a machine that has a route to them."""

from __future__ import annotations

from typing import Any

from pipeline.config import FetchConfig


def main(config: FetchConfig) -> dict[str, Any]:
    from pipeline.weights import fetch_all

    return fetch_all(config.names, config.source, config.sha256)
