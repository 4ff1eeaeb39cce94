"""`fetch`: pretrained weights into the cache, on a machine that has a route to them."""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import FetchConfig
from shards import store


def main(config: FetchConfig) -> dict[str, Any]:
    from pipeline.training.weights import fetch_all

    return fetch_all(config.names, config.source, config.sha256)


def dry_run(config: FetchConfig) -> str:
    from pipeline.training.weights import PUBLISHED, cached, origin

    return "\n".join(
        f"would read {store.display(origin(name, config.source))}, check its sha256 and write "
        f"{cached(name)}"
        for name in config.names or PUBLISHED
    )
