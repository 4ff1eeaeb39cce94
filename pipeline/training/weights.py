"""ImageNet weights of VGG16 and DenseNet-121: fetched on purpose, checked, cached without pickle.

Training and evaluation never download. `fetch` reads the publisher's file, or a copy of it anywhere
fsspec reaches, checks its sha256, unpickles tensors alone (`weights_only=True`), and keeps what the
networks use as safetensors under `$XDG_CACHE_HOME/lacuna/weights`. `load` fills a network from
such a file; `pretrained` finds it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as parse
from safetensors.torch import save
from torch import Tensor, nn

from models.densenet import DenseNetDiscriminator, torchvision_names
from models.vgg import VGG16Features
from pipeline.config.schema import CACHE, FetchConfig
from pipeline.training import pretrained
from shards import store


class Published(NamedTuple):
    """url: torchvision's file. sha256: the digits of its hash that its name carries."""

    url: str
    sha256: str
    network: type[nn.Module]


PUBLISHED = {
    "vgg16": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", VGG16Features
    ),
    "densenet121": Published(
        "https://download.pytorch.org/models/densenet121-a639ec97.pth",
        "a639ec97",
        DenseNetDiscriminator,
    ),
}


def cached(name: str) -> Path:
    """Where the weights called `name` lie once they were fetched."""
    return Path(pretrained.place(CACHE, _known(name)))


def fetch(name: str, source: str | None = None, sha256: str | None = None) -> dict:
    """Put the weights called `name` into the cache; `{"name", "path", "sha256", "tensors"}`.

    source: a file, or a folder of files named as the publisher's, at any URL; default the
    publisher's. sha256: (the beginning of) the expected hash, where the file is your own.
    Raises ValueError for a file of another hash or network, or one that cannot be read as weights.
    """
    published, url = PUBLISHED[_known(name)], origin(name, source)
    shown, wanted = store.display(url), (sha256 or published.sha256).lower()
    if not re.fullmatch("[0-9a-f]{8,64}", wanted):
        raise ValueError(f"sha256={sha256} is no hash: give its first 8 to 64 hexadecimal digits")
    try:
        data = store.read(url)
    except OSError as error:
        raise ValueError(
            f"{shown} cannot be read ({error.strerror or 'no such object'}): give source= a file "
            f"or a folder that holds {PUBLISHED[name].url.rsplit('/', 1)[-1]}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(wanted):
        raise ValueError(
            f"{shown} has sha256 {found[:16]}…, expected {wanted}…: it is damaged or another file; "
            "fetch it again, or give sha256= if it is your own"
        )
    state = _unpickled(data, shown)
    kept = _fitting(torchvision_names(state), published.network, f"{shown} for {name}")
    told = {"sha256": found, "tensors": pretrained.digest(save(kept))}
    store.write(str(cached(name)), save(kept, metadata=told))
    return {"name": name, "path": str(cached(name)), "sha256": found, "tensors": len(kept)}


def origin(name: str, source: str | None = None) -> str:
    """URL of the file: the publisher's, `source` itself, or the publisher's name below it."""
    url = PUBLISHED[_known(name)].url
    if source is None:
        return url
    if source.endswith((".pth", ".pt")) or store.is_local(source) and store.local(source).is_file():
        return source
    return store.join(source, store.name(url))


def load(data: bytes, network: nn.Module, shown: str) -> str:
    """Fill `network` below `features` from a file that `fetch` wrote; the publisher's sha256.

    Raises ValueError, naming the file as `shown`, where it is of another network.
    """
    network.load_state_dict(_fitting(parse(data), type(network), shown), strict=False)
    return pretrained.facts(data).get("sha256", "")


def _known(name: str) -> str:
    if name not in PUBLISHED:
        raise ValueError(f"no weights are called {name!r}; choose from {', '.join(PUBLISHED)}")
    return name


def _unpickled(data: bytes, shown: str) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{shown} cannot be read as weights ({reason[:120]}): it is cut short or no file of "
            "torch.save; fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout == torch.strided and not v.is_meta
        for k, v in state.items()
    ):
        raise ValueError(f"{shown} holds no state dict of tensors; give torchvision's file")
    return state


def _fitting(state: dict[str, Tensor], network: type[nn.Module], shown: str) -> dict[str, Tensor]:
    """The tensors of `state` that the network has below `features`, all of them, or ValueError."""
    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in network().state_dict().items() if k.startswith("features.")
        }
    optional = {key for key in shapes if key.endswith("num_batches_tracked")}
    missing = sorted(shapes.keys() - state.keys() - optional)
    present = shapes.keys() & state.keys()
    wrong = sorted(key for key in present if state[key].shape != shapes[key])
    if missing or wrong:
        first = (missing + wrong)[0]
        raise ValueError(
            f"{shown}: {len(missing)} tensors are missing and {len(wrong)} have another shape, "
            f"first {first}; these are weights of another network"
        )
    for key in sorted(present - optional):
        if not state[key].is_floating_point() or not bool(torch.isfinite(state[key]).all()):
            raise ValueError(
                f"{shown}: {key} is {state[key].dtype} and must hold finite floats; the file is "
                "damaged or was never trained: fetch it again"
            )
    return {key: state[key].contiguous() for key in shapes if key in state}


def fetch_all(names: Sequence[str], source: str | None = None, sha256: str | None = None) -> dict:
    """`fetch` for each name, all known ones by default; `{"weights": [...]}`."""
    if sha256 and len(names) != 1:
        raise ValueError("sha256= is of one file: name one of " + ", ".join(PUBLISHED))
    return {"weights": [fetch(name, source, sha256) for name in names or PUBLISHED]}


def main(config: FetchConfig) -> dict[str, Any]:

    return fetch_all(config.names, config.source, config.sha256)


def dry_run(config: FetchConfig) -> str:

    return "\n".join(
        f"would read {store.display(origin(name, config.source))}, check its sha256 and write "
        f"{cached(name)}"
        for name in config.names or PUBLISHED
    )
