"""`export`: write a model as an ONNX file that takes images of any batch, height and width.

The graph is that of the `torch.export` archive: `image` float N×3×H×W in [0, 1] and `mask` float
N×1×H×W (1 = hole) give `filled` float N×3×H×W in [0, 1]. The file is written only after onnxruntime
gave the same images as torch.
"""

import hashlib
import importlib.util
import warnings
from typing import Any

import torch

from models.inpainter import export
from pipeline.common.errors import ConfigError, one_line
from pipeline.config.schema import ExportConfig
from pipeline.inference import archive, sources
from shards import store

NEEDED = ("onnx", "onnxscript", "onnxruntime")
AXES = ("batch", "height", "width")
SIZES = ((1, 64, 96), (2, 131, 77), (1, 40, 200))  # compared with torch: batch, height, width
TOLERANCE = 1e-4


def main(config: ExportConfig) -> dict[str, Any]:
    """Write `out=`. Returns model, out, bytes, sha256 and the largest difference from torch."""
    _check(config)
    loaded = sources.load(model=config.model)
    if isinstance(loaded.fill, archive.Archive):
        program = loaded.fill.program
    elif isinstance(loaded.fill, torch.nn.Module):
        program = archive.without_sources(export(loaded.fill))  # type: ignore[arg-type]
    else:
        raise ConfigError(f"model={config.model} is a baseline without a network")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(program, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = one_line(error)[:200]
        raise ValueError(f"{loaded.name} cannot be written as ONNX: {reason}") from error
    assert graph is not None
    image, mask = graph.model.graph.inputs
    assert image.shape is not None
    graph.rename_axes({str(image.shape[axis]): name for axis, name in zip((0, 2, 3), AXES)})
    graph.model.graph.outputs[0].name = "filled"
    data = graph.model_proto.SerializeToString()
    try:
        difference = _difference(loaded.fill, data)
    except Exception as error:  # onnxruntime's have no common class
        reason = one_line(error)[:200]
        raise ValueError(f"{loaded.name}: onnxruntime cannot run it: {reason}") from error
    if difference > TOLERANCE:
        raise ValueError(
            f"{loaded.name} as ONNX differs from torch by {difference:.1e} (at most {TOLERANCE}): "
            f"{config.out} is not written"
        )
    store.write(config.out, data)
    digest = hashlib.sha256(data).hexdigest()
    result = {"model": loaded.name, "out": config.out, "bytes": len(data), "sha256": digest}
    return result | {"difference": difference}


def dry_run(config: ExportConfig) -> str:
    _check(config)
    return f"would write {config.model} to {config.out}"


def show(result: dict[str, Any]) -> str:
    return (
        f"{result['out']}: {result['bytes'] / 1e6:.1f} MB, any batch, height and width; "
        f"onnxruntime differs from torch by at most {result['difference']:.1e}"
    )


def _check(config: ExportConfig) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"`export` needs {', '.join(missing)}: pip install -e '.[onnx]'")


def _difference(fill: Any, data: bytes) -> float:
    """Return the largest difference of onnxruntime and torch on noise with half of it masked."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    noise, largest = torch.Generator().manual_seed(0), 0.0
    for batch, height, width in SIZES:
        image = torch.rand(batch, 3, height, width, generator=noise)
        mask = (torch.rand(batch, 1, height, width, generator=noise) < 0.5).float()
        (filled,) = session.run(None, {"image": image.numpy(), "mask": mask.numpy()})
        with torch.no_grad():
            wanted = fill(image, mask)
        largest = max(largest, (torch.from_numpy(filled) - wanted).abs().max().item())
    return largest
