"""What the verbs of a chain know of those before them: the set, the run, the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.common.secrets import ConfigError

KNOWN = {"train": {"data.url": "set"}, "evaluate": {"data.url": "set", "checkpoint": "run"},
         "register": {"run": "run"}, "promote": {"run": "run"}}  # fmt: skip


def told(verb: str, words: list[str], known: dict[str, str]) -> list[str]:
    """The words of a verb, and those that follow from what earlier verbs make."""
    given = {word.partition("=")[0] for word in words}
    if verb == "evaluate" and given & {"model", "predictions", "export"}:
        given.add("checkpoint")
    wanted = {k: v for k, v in KNOWN.get(verb, {}).items() if v in known and k not in given}
    for name, what in wanted.items():
        if not known[what]:
            raise ConfigError(f"{verb} follows a sweep of several runs: say by {name}= which")
    return [*words, *(f"{name}={known[what]}" for name, what in wanted.items())]


def learn(verb: str, config: Any, runs: Sequence[str], known: dict[str, str]) -> None:
    """Adds what the verb makes; of several runs none is the one that is meant."""
    if verb == "shard":
        known["set"] = str(config.out)
    elif verb == "train":
        known["run"] = runs[0] if len(runs) == 1 else ""
        known["set"] = str(config.data.url)
