"""Networks of metrics, with the published weights that `fetch` left in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from safetensors.torch import load as parse
from torch import Tensor, nn

from shards import store


@functools.cache
def loaded(
    network: Callable[[], nn.Module], needs: tuple[str, ...], device: torch.device
) -> nn.Module:
    """Return the network with the weights `needs` on `device`.

    Raises ValueError, with the command that fetches them, where a file is missing, damaged or of
    an earlier version that kept fewer layers.
    """
    module = network()
    state: dict[str, Tensor] = {}
    for name in needs:
        state |= parse(_read(name, needs))
    keys = {k for k in module.state_dict() if not k.endswith("num_batches_tracked")}
    if lacking := sorted(keys - state.keys()):
        raise ValueError(f"the cached weights lack {lacking[0]}: {_command(needs)}")
    module.load_state_dict({k: v for k, v in state.items() if k in keys}, strict=False)
    return module.to(device)


def hashes(needs: tuple[str, ...]) -> dict[str, str]:
    """Return the sha256 of each published file."""
    from pipeline.common import weights_cache

    return {name: weights_cache.facts(_read(name, needs)).get("sha256", "") for name in needs}


def _read(name: str, needs: tuple[str, ...]) -> bytes:
    from pipeline.common import weights_cache

    url = store.join(weights_cache.folder(), f"{name}.safetensors")
    if not store.exists(url):
        raise ValueError(f"the weights {name} are not in the cache: {_command(needs)}")
    data = store.read(url)
    if damaged := weights_cache.damage(data):
        raise ValueError(f"{url} is damaged ({damaged}): {_command(needs)}")
    return data


def _command(needs: tuple[str, ...]) -> str:
    return f"run `python -m pipeline fetch {' '.join(needs)}` and evaluate again"


def distance(
    network: Callable[[], nn.Module], needs: tuple[str, ...]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a metric of uint8 images from a network that compares two, float in [0, 1]."""

    @torch.no_grad()
    def function(result: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        a, b = (x.permute(0, 3, 1, 2).float() / 255 for x in (result, image))
        return loaded(network, needs, image.device)(a, b).double()

    return function
