"""Where scored weights come from: how a run was trained, and how its checkpoint was chosen."""

import hashlib
import json
from typing import Any

from omegaconf import OmegaConf

from pipeline.config.former import FORMER, RETIRED
from pipeline.config.groups import ValidateConfig
from pipeline.runs.checkpoints import find, split_address
from pipeline.runs.folder import saved_config
from pipeline.runs.identity import FIXED_AT_START, LATER, MAY_CHANGE
from pipeline.tracking.delivery import flatten

# Keys that do not change what a run learns, or are recorded elsewhere (the data set by its digest).
NOT_IN_RECIPE = (
    *MAY_CHANGE,
    *FIXED_AT_START,
    *RETIRED,
    "seed",
    "experiment",
    "validate.",
    "data.url",
    "init",
)


def selection(checkpoint: str, run: str) -> dict[str, str]:
    """Say how the checkpoint was chosen among those of its run."""
    which = split_address(checkpoint)[1] or "last"
    saved = saved_config(run)
    if which != "best" or saved is None:
        return {"selected": "the last" if which == "last" else "given by name"}
    validate = ValidateConfig(saved.validate.every_images, saved.validate.pairs)
    interval = validate.interval(saved.max_images)
    last = find(run).images_seen
    at_end = last >= saved.max_images and (not interval or last % interval > 0)
    count = (last // interval if interval else 0) + at_end
    return {"selected": f"best PSNR of {count} validations of up to {validate.pairs} pairs"}


def training_recipe(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the run's experiment and seed, and a hash of all other keys that affect training.

    Runs with the same hash differ only in their seed. Empty for a model that is not of a run.
    """
    saved = saved_config(facts["run"]) if "run" in facts else None
    if saved is None:
        return {}
    keys = flatten(OmegaConf.to_container(saved))  # type: ignore[arg-type]
    rest = {
        FORMER.get(name, name): value
        for name, value in keys.items()
        if not name.startswith(NOT_IN_RECIPE) and LATER.get(name, ...) != value
    }
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"experiment": saved.get("experiment"), "seed": saved.get("seed"), "recipe": digest}
