"""Load any inpainter as one callable: registered model, archive, checkpoint or baseline.

`fill(image, mask)`: image N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → N×3×H×W float, for
any H×W that the inpainter accepts. Its known pixels may differ from the image: composite them.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common.environment import cache_dir
from pipeline.inference import archive
from pipeline.inference.archive import Archive
from pipeline.inference.baselines import BASELINES, Fill
from pipeline.tracking import errors
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.model_versions import download, find_version
from shards import files, store

ARCHIVE = "artifacts/inpainter.pt2"
TAG_PREFIX = "lacuna."
REQUIRED_TAGS = {"sha256", "model_id", "tree_sha256", "network"}


@dataclass(frozen=True)
class LoadedInpainter:
    fill: Fill
    name: str
    facts: dict[str, Any]  # for records: weights, sha256; of a checkpoint run, url, images_seen


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


FORMER = {"mean_colour": "mean_color"}  # names of baselines in older commands


def load(
    model: str | None = None,
    checkpoint: str | None = None,
    weights: str = "auto",
    device: torch.device | str = "cpu",
) -> LoadedInpainter:
    """Load the inpainter that `model=` or `checkpoint=` names.

    model: a name of BASELINES, `models:/NAME@alias`, a registered NAME (its champion), an
    archive FILE.pt2, or a value of `checkpoint`: a run's folder or one of its checkpoints.
    Raises ValueError if it does not exist, or if its output depends on masked pixels.
    """
    if (model is None) == (checkpoint is None):
        raise ValueError("give either model= or checkpoint=")
    model = FORMER.get(str(model), model)
    if model in BASELINES:
        return LoadedInpainter(BASELINES[model], model, {"weights": "none"})
    if checkpoint is not None or _is_folder(str(model)):
        key = "model=" if checkpoint is None else "checkpoint="
        return _checkpoint(str(checkpoint or model), key, weights, device)
    inpainter = _archive(str(model), device)
    check_masked_pixels_unused(inpainter, device)
    return inpainter


def _is_folder(model: str) -> bool:
    if model.endswith(".pt2") or model.startswith("models:/"):
        return False
    return not store.is_local(model) or Path(model).is_dir()


def _checkpoint(url: str, key: str, weights: str, device: torch.device | str) -> LoadedInpainter:
    from models.inpainter import Inpainter
    from pipeline.runs.checkpoints import load_generator

    generator, state = load_generator(url, weights=weights, key=key)
    facts = {name: state[name] for name in ("run", "url", "weights", "images_seen", "sha256")}
    name = f"{store.name(state['run'])}@{state['images_seen']}"
    return LoadedInpainter(Inpainter(generator).to(device).eval(), name, facts)


def _archive(model: str, device: torch.device | str) -> LoadedInpainter:
    is_file = model.endswith(".pt2") or Path(model).is_file()
    uri = model
    if not is_file and not model.startswith("models:"):
        if "/" in model:
            raise ValueError(
                f"model={model} does not exist: give a run's folder, a checkpoint, an archive "
                f"(.pt2), a registered model, {' or '.join(BASELINES)}"
            )
        uri = f"models:/{model}" if "@" in model else f"models:/{model}@champion"
    try:
        archive, facts = load_archive(uri, str(device))
    except ValueError as error:
        if uri == model:
            raise
        raise ValueError(f"{error}; baselines are {', '.join(BASELINES)}") from None
    name = f"{facts['name']}/{facts['version']}" if "version" in facts else Path(model).stem
    recorded = ("model_uri", "sha256", "weights", "weights_sha256", "run_id")
    return LoadedInpainter(
        archive, name, {"weights": "unknown"} | {k: facts[k] for k in recorded if k in facts}
    )


def check_masked_pixels_unused(inpainter: LoadedInpainter, device: torch.device | str) -> None:
    """Raise ValueError if the fill changes with the pixels under the mask.

    A model of the opposite polarity (1 = known) fails too: it sees only the pixels in the hole.
    """
    mask = torch.zeros(1, 1, 64, 64, device=device)
    mask[..., 16:48, 8:40] = 1
    known = torch.linspace(0, 1, 64, device=device).expand(1, 3, 64, 64) * (1 - mask)
    with torch.no_grad():
        black = inpainter.fill(known, mask) * mask
        white = inpainter.fill(known + mask, mask) * mask
    if not torch.allclose(black, white, atol=1e-6):
        raise ValueError(
            f"output of {inpainter.name} depends on masked pixels: mask polarity is inverted or "
            "the hole is not erased; export the model with 1 = hole, erased inside the network"
        )


def load_archive(
    uri: str, device: str = "cpu", root: str = "runs"
) -> tuple[Archive, dict[str, Any]]:
    """Load the archive of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a local `.pt2` file.

    Second: sha256 and model_uri; for a registered model also name, version, network and its other
    `lacuna.*` tags. Raises ValueError for an unknown name, version or alias, and for bytes other
    than those that were registered.
    """
    if not uri.startswith("models:"):
        loaded = archive.load(uri, device=device)
        return loaded, {"sha256": loaded.sha256, "model_uri": uri}
    server = tracking_uri(root)
    client = connect(server, make=False)
    with errors.explained(server):
        version = find_version(client, uri)
        tags = own_tags(version)
        path = fetch(server, tags["model_id"], tags["sha256"])
    info: dict[str, Any] = {**tags, "model_uri": f"models:/{version.name}/{version.version}"}
    info |= {"name": version.name, "version": int(version.version)}
    return archive.load(str(path), tags["sha256"], device), info


def prefixed(facts: dict[str, str]) -> dict[str, str]:
    """Return facts about a registered version as its tags."""
    return {f"{TAG_PREFIX}{key}": value for key, value in facts.items()}


def own_tags(version: Any) -> dict[str, str]:
    """Return a version's `lacuna.*` tags without the prefix; ValueError if it has none."""
    own = {k: v for k, v in version.tags.items() if k.startswith(TAG_PREFIX)}
    tags = {k.removeprefix(TAG_PREFIX): v for k, v in own.items()}
    if not set(tags) >= REQUIRED_TAGS:
        raise ValueError(
            f"{version.name}/{version.version} was not created by `register`: register its run"
        )
    return tags


def fetch(uri: str, model_id: str, sha256: str) -> Path:
    """Return the archive of a logged model, downloaded into the cache if it is not there."""
    cache = cache_dir() / "models"
    path = cache / f"{sha256}.pt2"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            download(uri, model_id, ARCHIVE, Path(folder))
            files.rename(Path(folder, ARCHIVE), path)
    return path
