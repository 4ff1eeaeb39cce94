"""The files of a logged model: pyfunc code, archive, golden pair, model card, requirements."""

import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.inpainter import Inpainter
from pipeline.evaluation import results
from pipeline.inference import archive
from pipeline.tracking import client

LIMITS = """\
- Pictures are RGB of 8 bits; the network saw square crops of training pictures, with holes drawn at
  random. It continues texture and structure; it does not know what stood in the hole.
- Memory grows with the picture: the archive is meant for up to 512×512. `predict` cuts larger ones
  into tiles.
- Known pixels come out bit for bit. The hole is where the mask is white (above 127).
"""


PINNED = ("mlflow", "torch", "numpy", "Pillow")


def write(
    generator: torch.nn.Module,
    facts: dict[str, str],
    evaluation: dict[str, Any] | None,
    folder: Path,
) -> None:
    """Writes the logged model's files to `folder/model`; adds the archive's hash to `facts`.

    evaluation: what the card says was measured, as `card.text` takes it.
    """
    client.telemetry_off()
    import mlflow.pyfunc
    import pandas
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inpainter = Inpainter(generator).eval()
    picture, mask = golden_pair()
    trained = _fill(inpainter, picture, mask)
    if not np.isfinite(trained).all():
        raise ValueError("the generator gives non-finite pixels: choose another checkpoint=")
    facts["sha256"] = archive.save(inpainter, folder / "inpainter.pt2")
    exported = _fill(archive.load(str(folder / "inpainter.pt2")), picture, mask)
    if (difference := float(np.abs(exported - trained).max())) > 1e-4:
        raise ValueError(f"the exported network differs from the trained one by {difference:.2g}")
    golden = folder / "golden"
    golden.mkdir()
    filled = (exported * 255).round().astype(np.uint8)
    for name, pixels in (("image", picture), ("mask", mask), ("filled", filled)):
        Image.fromarray(pixels).save(golden / f"{name}.png")
    pair = {name: (golden / f"{name}.png").read_bytes() for name in ("image", "mask")}
    (folder / "README.md").write_text(text(facts, evaluation))
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", "image"), ColSpec("binary", "mask")]),
        outputs=Schema(
            [ColSpec("binary", "image"), ColSpec("string", "sha256"), ColSpec("string", "version")]
        ),
    )
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(folder / "model"),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={
                "inpainter": str(folder / "inpainter.pt2"),
                "golden": str(golden),
                "card": str(folder / "README.md"),
                "facts": str(folder / "facts.json"),
            },
            signature=signature,
            input_example=pandas.DataFrame([pair]),
            pip_requirements=[
                f"{p}=={importlib.metadata.version(p).split('+')[0]}" for p in PINNED
            ],
            metadata={f"lacuna.{k}": v for k, v in facts.items()},
            mlflow_model=Model(),
        )


def golden_pair() -> tuple[np.ndarray, np.ndarray]:
    """A picture and its mask (255 = hole), uint8 H×W×3 and H×W, the same at every call.

    Of a size that no stride divides, so that padding is part of what they prove.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:93, 0:131]
    picture = np.stack([rows * 2, columns, 255 - rows - columns // 2], -1)
    picture = (picture + rng.integers(-8, 9, picture.shape)).clip(0, 255).astype(np.uint8)
    return picture, ((rows - 46) ** 2 + (columns - 70) ** 2 < 500).astype(np.uint8) * 255


def _fill(inpainter: torch.nn.Module, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Float H×W×3 in [0, 1]."""
    image = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).float() / 255
    hole = torch.from_numpy(mask).unsqueeze(0).unsqueeze(0).float() / 255
    with torch.inference_mode():
        return inpainter(image, hole)[0].permute(1, 2, 0).numpy()


def text(facts: Mapping[str, str], evaluation: Mapping[str, Any] | None = None) -> str:
    """Markdown. `evaluation` is what `evaluate` returned for these weights, where it did."""
    lines = [
        f"# {facts['name']}",
        "",
        f"Fills holes in photographs: {facts['network']}, after {int(facts['images_seen']):,} "
        f"images ({facts['weights']} weights).",
        "",
        "| | |",
        "|---|---|",
    ]
    for key, label in (
        ("dataset", "training data (sha256 of its manifest)"),
        ("run", "run"),
        ("run_id", "MLflow run"),
        ("commit", "code"),
        ("sha256", "sha256 of inpainter.pt2"),
        ("weights_sha256", "sha256 of the weights"),
        ("registered_by", "registered by"),
    ):
        if key in facts:
            lines.append(f"| {label} | `{facts[key]}` |")
    lines += ["", "## Measured", "", *_measured(evaluation)]
    lines += ["", "## Limits", "", LIMITS]
    lines += [
        "## Licence",
        "",
        "The code is Apache-2.0. The weights are as free as the pictures they were trained on: see "
        "the licence of the data set.",
        "",
    ]
    return "\n".join(lines)


def _measured(evaluation: Mapping[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["Nothing yet: `python -m pipeline evaluate` measures, `promote` asks for it."]
    lines = [
        f"Protocol {evaluation['protocol']}, {evaluation['pairs']} pairs, on the composite.",
        "",
    ]
    heading, *rows = results.table_rows(evaluation)
    table = [heading, ["---"] * len(heading), *rows]
    return lines + [f"| {' | '.join(row)} |" for row in table]


def tree_digest(folder: Path) -> str:
    """sha256 over the names and hashes of all files below a folder."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
