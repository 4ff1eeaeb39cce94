"""A resolved configuration as the start of another command: `config=URL`, or `train run=` alone.

Then neither conf/ nor a site's nor a user's folder is read: what was resolved is what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf


def saved_start(
    verb: str, groups: Iterable[str], words: Sequence[str]
) -> tuple[tuple[Any, str] | None, list[str]]:
    """The configuration to start from with its URL, if there is one, and the words that are left.

    `train run=URL` starts from `<run>/config.yaml` where that exists and no word names a recipe or
    another group.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "config" in given:
        return _read(given["config"]), [w for w in words if not w.startswith("config=")]
    if verb == "train" and given.get("run") and not set(groups) & set(given):
        from shards import store

        url = store.join(given["run"], "config.yaml")
        if store.exists(url):
            return _read(url), list(words)
    return None, list(words)


def _read(url: str) -> tuple[Any, str]:
    from shards import store

    try:
        return OmegaConf.create(store.read(url).decode()), store.display(url)
    except FileNotFoundError:
        raise ValueError(f"config={store.display(url)} does not exist") from None
