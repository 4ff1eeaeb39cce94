"""Write the files of a logged model: pyfunc code, archive, golden pair, card, requirements."""

import hashlib
import importlib.metadata
import logging
import shutil
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
from shards import store

ROOT = Path(__file__).parents[2]
LIMITS = """\
- Input is 8-bit RGB. The network was trained on square crops with random holes: it continues
  texture and structure, and cannot recover the original content of the hole.
- Memory grows with image size: the archive is meant for up to 512×512. `predict` and the served
  model split larger images into tiles.
- Known pixels are returned unchanged. The hole is where the mask is white (above 127).
"""
USE = """\
```python
import mlflow, pandas
mlflow.set_tracking_uri("http://127.0.0.1:5000")  # or where this page is
model = mlflow.pyfunc.load_model("models:/MODEL_ID")
pair = {name: open(f"{name}.png", "rb").read() for name in ("image", "mask")}
filled = model.predict(pandas.DataFrame([pair]))
open("filled.png", "wb").write(filled[0]["image"])
```
"""
SHEET = "samples.png"  # of a logged model
PINNED = ("mlflow", "torch", "numpy", "Pillow", "opencv-python-headless")
CODE = {  # what pyfunc.py imports, and what that imports
    "shards": ("formats", "mask_file", "metadata", "store", "objects", "files"),
    "pipeline/inference": ("images", "tiling"),
}


def write(
    generator: torch.nn.Module,
    facts: dict[str, str],
    folder: Path,
) -> None:
    """Write the logged model's files to `folder/model`; add size and archive's hash to `facts`."""
    client.telemetry_off()
    import mlflow.pyfunc
    import pandas
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    inpainter = Inpainter(generator).eval()
    image, mask = golden_pair()
    trained = _fill(inpainter, image, mask)
    if not np.isfinite(trained).all():
        raise ValueError("the generator outputs non-finite pixels: choose another checkpoint=")
    facts["parameters"] = str(sum(each.numel() for each in generator.parameters()))
    facts["sha256"] = archive.save(inpainter, folder / "inpainter.pt2")
    exported = _fill(archive.load(str(folder / "inpainter.pt2")), image, mask)
    if (difference := float(np.abs(exported - trained).max())) > 1e-4:
        raise ValueError(
            f"the exported network differs from the trained one by {difference:.2g} (at most "
            "1e-4 is allowed): export with another version of torch"
        )
    golden = folder / "golden"
    golden.mkdir()
    filled = (exported * 255).round().astype(np.uint8)
    for name, pixels in (("image", image), ("mask", mask), ("filled", filled)):
        Image.fromarray(pixels).save(golden / f"{name}.png")
    pair = {name: (golden / f"{name}.png").read_bytes() for name in ("image", "mask")}
    signature = ModelSignature(
        # Of other types, MLflow answers errors of its own, with the request in them.
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in ("image", "mask")]),
        outputs=Schema(
            [ColSpec("binary", "image"), ColSpec("string", "sha256"), ColSpec("string", "version")]
        ),
    )
    for place, modules in CODE.items():
        (folder / place).mkdir(parents=True)
        for module in modules:
            shutil.copy(ROOT / place / f"{module}.py", folder / place)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(folder / "model"),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            code_paths=[str(folder / "shards"), str(folder / "pipeline")],
            artifacts={
                "inpainter": str(folder / "inpainter.pt2"),
                "golden": str(golden),
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
    """Return a fixed image and mask (255 = hole), uint8 H×W×3 and H×W.

    No stride divides their size, so that padding is tested too.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:93, 0:131]
    image = np.stack([rows * 2, columns, 255 - rows - columns // 2], -1)
    image = (image + rng.integers(-8, 9, image.shape)).clip(0, 255).astype(np.uint8)
    return image, ((rows - 46) ** 2 + (columns - 70) ** 2 < 500).astype(np.uint8) * 255


def _fill(inpainter: torch.nn.Module, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill by the network: float H×W×3 in [0, 1]."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float() / 255
    hole = torch.from_numpy(mask).unsqueeze(0).unsqueeze(0).float() / 255
    with torch.inference_mode():
        return inpainter(pixels, hole)[0].permute(1, 2, 0).numpy()


def write_card(
    facts: Mapping[str, str], evaluation: Mapping[str, Any] | None, model_id: str, folder: Path
) -> str:
    """Write the model card, Markdown, into a logged model's folder; return it.

    evaluation: that of these weights, if any.
    """
    card = _card(facts, evaluation, model_id, (folder / SHEET).exists())
    (folder / "README.md").write_text(card)
    return card


def _card(
    facts: Mapping[str, str], evaluation: Mapping[str, Any] | None, model_id: str, has_sheet: bool
) -> str:
    size = f", {int(facts['parameters']) / 1e6:.2f} M weights" if "parameters" in facts else ""
    lines = [
        f"# {facts['name']}",
        "",
        f"Fills holes in photographs: {facts['network']}{size}, after "
        f"{int(facts['images_seen']):,} images ({facts['weights']} weights).",
        "",
    ]
    if has_sheet:  # relative to the server's page
        place = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path="
        lines += [f"![original, masked and result of validation pairs]({place}{SHEET})", ""]
    lines += ["## Use", "", USE.replace("MODEL_ID", model_id)]
    lines += ["## Measured", "", *_measured(evaluation), ""]
    lines += [
        "## Origin",
        "",
        "| | |",
        "|---|---|",
    ]
    for key, label in (
        ("license", "license of the weights"),
        ("model", "architecture"),
        ("recipe", "recipe"),
        ("data", "training data"),
        ("dataset", "sha256 of its manifest"),
        ("run", "run"),
        ("run_id", "MLflow run"),
        ("tracked", "MLflow run"),
        ("commit", "code"),
        ("sha256", "sha256 of inpainter.pt2"),
        ("weights_sha256", "sha256 of the weights"),
        ("registered_by", "registered by"),
    ):
        if key in facts:
            lines.append(f"| {label} | `{facts[key]}` |")
    lines += ["", "## Limits", "", LIMITS]
    lines += [
        "## License",
        "",
        "The code is Apache-2.0. The license of the data set also applies to the weights.",
        "",
    ]
    return "\n".join(lines)


def _measured(evaluation: Mapping[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["Not evaluated yet: run `python -m pipeline evaluate`; `promote` requires it."]
    pairs = f"Protocol {evaluation['protocol']}, {evaluation['pairs']} pairs"
    pairs += f" of split {evaluation['split']}" if evaluation.get("split") else ""
    pairs += f" of `{store.display(url)}`" if (url := evaluation.get("data_url")) else ""
    lines = [f"{pairs}, on the composite.", ""]
    heading, *rows = results.table_rows(evaluation)
    table = [heading, ["---"] * len(heading), *rows]
    return lines + [f"| {' | '.join(row)} |" for row in table]


def tree_digest(folder: Path) -> str:
    """Hash (sha256) the names and hashes of all files below a folder."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
