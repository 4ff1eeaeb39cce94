"""The ImageNet weights that an objective needs, and the files that hold them.

`train weights=` gives their place: `cache` (written by `fetch`), a folder or URL of such files, or
`random` for none. Nothing here imports torch, so that the launcher can check the files.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.common.errors import ConfigError
from pipeline.common.weights_cache import damage, folder, header
from pipeline.config.schema import CACHE, RANDOM, TrainConfig
from shards import objects, store

# A tensor that tells a network from its siblings, by its shape; None: there is none of the name.
# The first blocks of VGG19 would fit VGG16.
TELLTALE = {
    "vgg16": ("features.16.weight", None),
    "vgg19": ("features.16.weight", [256, 256, 3, 3]),
    "densenet121": ("features.norm5.weight", [1024]),
}


def place(weights: str, name: str) -> str:
    """Return the path or URL of one network's file under `weights=`."""
    return store.join(folder() if weights == CACHE else weights, f"{name}.safetensors")


def from_cache(config: TrainConfig) -> list[str]:
    """List the files that this configuration takes from the user's cache."""
    return config.objective.published() if config.weights == CACHE else []


def located(config: TrainConfig) -> TrainConfig:
    """Replace `weights=cache` by the path of the submitter's cache: a job's own may differ.

    Not for pods, which do not see the submitter's disks: `submit` copies the files for them.
    """
    if config.cluster.scheduler == "kubernetes" or not from_cache(config):
        return config
    return replace(config, weights=folder())


def check(config: TrainConfig) -> None:
    """Check that the weights exist and are intact."""
    for name in config.objective.published() if config.weights != RANDOM else ():
        read(config.weights, name)


def read(weights: str, name: str) -> bytes:
    """Read one file. ConfigError if it is missing or damaged, StoreError without the store."""
    url = place(weights, name)
    shown = f"weights={store.display(weights)}: {store.display(url)}"
    fix = (
        f"run `python -m pipeline fetch {name}`, give a folder or URL that holds "
        f"{name}.safetensors by weights=, or use untrained features by weights=random"
    )
    try:
        data = store.read(url)
    except objects.StoreError:
        raise
    except OSError as error:
        reason = (error.strerror or "not there").lower()
        raise ConfigError(
            f"the objective needs the ImageNet weights of {name}; {shown} cannot be read "
            f"({reason}): {fix}"
        ) from None
    if damaged := damage(data):
        raise ConfigError(f"{shown} is damaged ({damaged}): {fix}")
    tensor, shape = TELLTALE[name]
    if (found := header(data).get(tensor, {}).get("shape")) != shape:
        raise ConfigError(f"{shown} is not of {name} ({tensor}: {found}, not {shape}): {fix}")
    return data
