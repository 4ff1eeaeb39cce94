"""Whatever fills holes, as one callable: a registered model, an archive, a checkpoint, a yardstick.

`fill(image, mask)`: image N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → N×3×H×W float, for
any H×W the source takes. Known pixels of the answer are not to be relied on: composite them.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.common.environment import cache_dir
from pipeline.inference import archive
from pipeline.inference.archive import Archive
from pipeline.tracking import errors
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.model_versions import download, find_version
from shards import store

ARCHIVE = "artifacts/inpainter.pt2"
WEIGHTS = {"raw": "generator", "ema": "generator_ema"}  # names of a checkpoint's files


Fill = Callable[[Tensor, Tensor], Tensor]


GENERATOR = {"raw": "generator", "ema": "generator_ema"}  # names of a checkpoint's files


@dataclass(frozen=True)
class LoadedInpainter:
    fill: Fill
    name: str
    facts: dict[str, Any]  # for records: weights, sha256; of a checkpoint run, url, images_seen


def mean_colour(image: Tensor, mask: Tensor) -> Tensor:
    """The mean colour of each picture's known pixels; mid-grey where nothing is known."""
    known = 1 - mask
    count = known.sum((2, 3), keepdim=True)
    mean = (image * known).sum((2, 3), keepdim=True) / count.clamp(min=1)
    return torch.where(count > 0, mean, 0.5).expand_as(image)


def telea(image: Tensor, mask: Tensor) -> Tensor:
    """OpenCV's fast marching inpainting (Telea 2004), radius 5."""
    pixels = (image * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    holes = mask[:, 0].ne(0).byte().cpu().numpy()
    filled = [cv2.inpaint(p, m, 5, cv2.INPAINT_TELEA) for p, m in zip(pixels, holes)]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(image) / 255


BASELINES: dict[str, Fill] = {"mean_colour": mean_colour, "telea": telea}


def load(
    model: str | None = None,
    checkpoint: str | None = None,
    weights: str = "auto",
    device: torch.device | str = "cpu",
) -> LoadedInpainter:
    """The source that `model=` or `checkpoint=` names.

    model: `mean_colour`, `telea`, `models:/NAME@alias`, a registered NAME (its champion), an
    archive FILE.pt2, or what `checkpoint` takes: a run's folder or one of its checkpoints.
    Raises ValueError in one line when there is no such thing, or it looks into the hole.
    """
    if (model is None) == (checkpoint is None):
        raise ValueError("give one of model= and checkpoint=")
    if model is not None and model in BASELINES:
        return LoadedInpainter(BASELINES[model], model, {"weights": "none"})
    if checkpoint is not None or _is_folder(str(model)):
        return _checkpoint(str(checkpoint or model), weights, device)
    source = _archive(str(model), device)
    refuse_a_look_into_the_hole(source, device)
    return source


def _is_folder(model: str) -> bool:
    if model.endswith(".pt2") or model.startswith("models:/"):
        return False
    return not store.is_local(model) or Path(model).is_dir()


def _checkpoint(url: str, weights: str, device: torch.device | str) -> LoadedInpainter:
    from models.inpainter import Inpainter
    from pipeline.runs.checkpoints import load_generator

    generator, state = load_generator(url, weights=weights)
    facts = {name: state[name] for name in ("run", "url", "weights", "images_seen")}
    facts["sha256"] = state["files"][GENERATOR[state["weights"]]]["sha256"]
    name = f"{state['run'].rsplit('/', 1)[-1]}@{state['images_seen']}"
    return LoadedInpainter(Inpainter(generator).to(device).eval(), name, facts)


def _archive(model: str, device: torch.device | str) -> LoadedInpainter:

    is_file = model.endswith(".pt2") or Path(model).is_file()
    if not is_file and not model.startswith("models:"):
        model = f"models:/{model}@champion"
    archive, facts = load_archive(model, str(device))
    name = f"{facts['name']}/{facts['version']}" if "version" in facts else Path(model).stem
    kept = ("model_uri", "sha256", "weights", "weights_sha256", "run_id")
    told: dict[str, Any] = {k: facts[k] for k in kept if k in facts}
    return LoadedInpainter(archive, name, {"weights": "unknown"} | told)


def refuse_a_look_into_the_hole(source: LoadedInpainter, device: torch.device | str) -> None:
    """ValueError when the answer depends on pixels that the mask hides.

    So does a model that was made for the other polarity (1 = known): it is then given the hole and
    denied the picture.
    """
    mask = torch.zeros(1, 1, 64, 64, device=device)
    mask[..., 16:48, 8:40] = 1
    known = torch.linspace(0, 1, 64, device=device).expand(1, 3, 64, 64) * (1 - mask)
    with torch.no_grad():
        black = source.fill(known, mask) * mask
        white = source.fill(known + mask, mask) * mask
    if not torch.allclose(black, white, atol=1e-6):
        raise ValueError(
            f"{source.name} looks at pixels that the mask hides: it takes masks the other way "
            "round, or does not erase them; export it with 1 = hole, erased inside"
        )


def load_archive(
    uri: str, device: str = "cpu", root: str = "runs"
) -> tuple[Archive, dict[str, Any]]:
    """The inpainter behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a local `.pt2` file.

    Second: sha256, and for a registered one model_uri, name, version, network and the other
    `lacuna.*` tags. Raises ValueError, one line, for a name, version or alias that is not there and
    for bytes that are not those that were registered.
    """
    if not uri.startswith("models:"):
        loaded = archive.load(uri, device=device)
        return loaded, {"sha256": loaded.sha256, "model_uri": uri}
    where = tracking_uri(root)
    client = connect(where, make=False)
    with errors.explained(where):
        version = find_version(client, uri)
        tags = {k[7:]: v for k, v in version.tags.items() if k.startswith("lacuna.")}
        if not {"sha256", "model_id"} <= set(tags):
            raise ValueError(f"{uri} was not made by `register`: register its run")
        path = fetch(where, tags["model_id"], tags["sha256"])
    info = {**tags, "model_uri": f"models:/{version.name}/{version.version}"}
    info |= {"name": version.name, "version": int(version.version)}
    return archive.load(str(path), tags["sha256"], device), info


def fetch(uri: str, model_id: str, sha256: str) -> Path:
    """The archive of a logged model, from the cache or downloaded into it."""
    cache = cache_dir() / "models"
    path = cache / f"{sha256}.pt2"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            download(uri, model_id, ARCHIVE, Path(folder))
            os.replace(Path(folder, ARCHIVE), path)
    return path
