"""What the commands of a chain take from earlier ones, and what they would refuse of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.groups import from_set
from pipeline.runs.checkpoints import split_address
from shards import store

# Keys of later commands, and the facts about earlier ones that they default to.
INHERITED = {
    "train": {"data.url": "set"},
    "evaluate": {
        "data.url": "set", "data.resize_short": "resize", "masks.url": "masks",
        "protocol": "protocol", "split": "split", "limit": "limit", "checkpoint": "best",
        "methods.path": "methods",
    },
    "register": {"run": "run", "methods.path": "methods"},
    "promote": {"run": "run", "model": "model"},
}  # fmt: skip
COVERED = {"data": "data.resize_short", "model": "checkpoint", "predictions": "checkpoint",
           "export": "checkpoint"}  # fmt: skip


class Chain:
    """Facts about the commands so far: `facts` are values of keys, the others only checked.

    masks: side of a set of masks, and whether it has squares.
    evaluated, registered: checkpoint and weights of the trained run.
    """

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self.masks: tuple[int, bool] | None = None
        self.network = ""
        self.evaluated: tuple[str, str] | None = None
        self.registered: tuple[str, str] | None = None

    def inherited(self, verb: str, args: Sequence[str]) -> list[str]:
        """Return the arguments of a command, with keys that default to outputs of earlier ones."""
        given = {arg.partition("=")[0] for arg in args}
        covered = {COVERED[name] for name in given & COVERED.keys() if verb == "evaluate"}
        keys = dict(INHERITED.get(verb, {}))
        if verb == "train" and "masks=external" in args:
            keys["masks.url"] = "masks"
        defaults = []
        for name, what in keys.items():
            if what not in self.facts or name in given | covered:
                continue
            if not self.facts[what]:
                raise ConfigError(
                    f"{verb} follows a sweep of several runs: choose one with {name}="
                )
            defaults.append(f"{name}={self.facts[what]}")
        return [*args, *defaults]

    def add(self, verb: str, config: Any, args: Sequence[str], runs: Sequence[str]) -> None:
        """Check a command against the earlier ones, and note what later ones take from it.

        After a sweep the run is ambiguous: an empty text.
        """
        if verb in ("train", "evaluate"):
            self._check_masks(verb, config)
            short = config.data.resize_short
            self.facts["set"] = str(config.data.url)
            self.facts["resize"] = "null" if short is None else str(short)
        if verb == "shard":
            self.facts["set"] = str(config.out)
        elif verb == "masks":
            self.facts["masks"] = config.out
            drawn = config.source is None
            self.masks = config.size, config.fixed is not False if drawn else bool(config.fixed)
        elif verb == "train":
            run = runs[0] if len(runs) == 1 else ""
            self.facts |= {"run": run, "best": run and store.join(run, "checkpoints", "best")}
            self.facts["protocol"] = "musical" if config.masks.kind == "center" else "msanet"
            self.facts.pop("model", None)
            self.facts.pop("methods", None)
            if config.methods.path:
                self.facts["methods"] = config.methods.path
            self.network, self.evaluated, self.registered = config.model.name, None, None
        elif verb == "evaluate":
            self.facts |= {"split": config.split, "limit": str(config.limit or "null")}
            if config.masks.url:
                self.facts["masks"] = config.masks.url
            named = (arg.partition("=")[2] for arg in args if arg.startswith("protocol="))
            self.facts["protocol"] = next(named, "msanet")
            if config.checkpoint and self._is_trained(split_address(config.checkpoint)[0]):
                self.evaluated = split_address(config.checkpoint)[1] or "last", config.weights
        elif verb == "register" and self._is_trained(config.run):
            self.facts["model"] = config.name or f"inpaint-{self.network}"
            self.registered = config.checkpoint, config.weights
        elif verb == "promote" and self._is_trained(config.run) and "/" not in config.model:
            self._check_promotion(config)

    def _is_trained(self, run: str | None) -> bool:
        return bool(run) and run == self.facts.get("run")

    def _check_masks(self, verb: str, config: Any) -> None:
        """Refuse masks of this chain that the command could not use."""
        if self.masks is None or config.masks.url != self.facts["masks"]:
            return
        side, squares = self.masks
        if verb == "train":
            key, wanted = "validate.size", config.validate.size
        else:
            key, wanted = "protocol.size", config.protocol.size
            if "fixed" in from_set(config.protocol.buckets) and not squares:
                raise ConfigError(
                    f"masks out={self.facts['masks']} writes no squares (bucket fixed), which "
                    f"protocol={config.protocol.name} needs: give it fixed=true"
                )
        if wanted != side:
            raise ConfigError(
                f"masks size={side}, but {verb} needs {key}={wanted}: give the same size"
            )

    def _check_promotion(self, config: Any) -> None:
        """Refuse to promote what the chain does not register, or scores in other weights."""
        if self.registered is None:
            raise ConfigError(
                f"promote {config.model} would find no version of {config.run}: put `then "
                "register` before it"
            )
        if config.model != self.facts["model"]:
            raise ConfigError(
                f"promote {config.model}: this chain registers {self.facts['model']}; leave the "
                "name out, or give register name="
            )
        if config.pairs is None and self.evaluated is None:
            raise ConfigError(
                "promote needs scores of the run: put `then evaluate` before it, or give pairs="
            )
        which, weights = self.registered
        scored = self.evaluated and (self.evaluated[0].lstrip("0"), self.evaluated[1])
        if config.pairs is None and scored != (which.lstrip("0"), weights):
            raise ConfigError(
                f"promote needs scores of the registered weights: give evaluate checkpoint="
                f"{store.join(self.facts['run'], 'checkpoints', which)} weights={weights}"
            )
