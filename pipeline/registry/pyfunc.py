"""What answers where a model is served: this file travels into the registry beside the archive.

MLflow runs it there (models from code), on a machine that has mlflow, torch, numpy and Pillow and
nothing of ours. A row has `image` and `mask`: bytes of a PNG, JPEG or WebP, the same as base64
text, or uint8 arrays H×W×3 and H×W. Hole: mask above 127 in a picture, not 0 in an array. The
answer has a row each: `image` in the form that was asked with (bytes: PNG), `sha256` of the archive
that filled it, and `version` as the deployment names it.

LACUNA_MAX_PIXELS: the largest picture that is taken (default 512×512, memory grows with it);
LACUNA_MODEL_VERSION: what `version` says.
"""

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image, ImageOps

AT_ONCE = 8


class Inpaint(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """The pyfunc: rows of pictures with holes in, filled pictures out."""

    def load_context(self, context: Any) -> None:
        path = Path(context.artifacts["inpainter"])
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        program = torch.export.load(path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.module = program.module()
        self.max_pixels = int(os.environ.get("LACUNA_MAX_PIXELS", 512 * 512))

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        rows = list(zip(model_input["image"], model_input["mask"]))
        pairs = [self._pair(number, *row) for number, row in enumerate(rows)]
        filled = self.fill(pairs)
        answer = {"sha256": self.sha256, "version": os.environ.get("LACUNA_MODEL_VERSION", "")}
        return [
            {"image": png(result) if isinstance(row[0], (bytes, str)) else result, **answer}
            for row, result in zip(rows, filled)
        ]

    def fill(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Fills pictures uint8 H×W×3 where their masks H×W are True; known bytes stay."""
        results: list[np.ndarray] = [image for image, _ in pairs]
        for shape in {mask.shape for _, mask in pairs}:
            same = [i for i, (_, mask) in enumerate(pairs) if mask.shape == shape]
            for start in range(0, len(same), AT_ONCE):
                chosen = same[start : start + AT_ONCE]
                image = torch.from_numpy(np.stack([pairs[i][0] for i in chosen])).to(self.device)
                mask = torch.from_numpy(np.stack([pairs[i][1] for i in chosen])).to(self.device)
                floats = image.permute(0, 3, 1, 2).float() / 255
                with torch.inference_mode():
                    out = self.module(floats, mask.unsqueeze(1).float())
                out = out.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
                out = torch.where(mask.unsqueeze(-1), out, image).cpu().numpy()
                for i, result in zip(chosen, out):
                    results[i] = result
        return results

    def _pair(self, number: int, image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        try:
            pixels, hole = self._picture(image, "RGB"), self._picture(mask, "L")
        except ValueError as error:
            raise refusal(f"row {number}: {error}") from None
        if pixels.shape[:2] != hole.shape:
            raise refusal(
                f"row {number}: the picture is {pixels.shape[1]}×{pixels.shape[0]}, its mask "
                f"{hole.shape[1]}×{hole.shape[0]}: send a mask of the picture's size"
            )
        return pixels, hole > (127 if isinstance(mask, (bytes, str)) else 0)

    def _picture(self, given: Any, mode: str) -> np.ndarray:
        """Bytes, base64 text or an array as uint8 H×W×3 (RGB) or H×W (L)."""
        if not isinstance(given, (bytes, str)):
            return self._array(given, 3 if mode == "RGB" else 2)
        try:
            if isinstance(given, str):
                given = base64.b64decode("".join(given.split()), validate=True)
            with Image.open(io.BytesIO(given), formats=("PNG", "JPEG", "WEBP")) as picture:
                self._check_size(*picture.size)
                if picture.mode.startswith(("I", "F")):
                    raise OSError(picture.mode)
                return np.array(ImageOps.exif_transpose(picture).convert(mode))
        except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise ValueError(
                f"no PNG, JPEG or WebP of 8 bits could be read ({type(error).__name__})"
            ) from None

    def _array(self, given: Any, dimensions: int) -> np.ndarray:
        try:
            array = np.array(given) if isinstance(given, Iterable) else np.array([])
        except ValueError:
            array = np.array([])
        wanted = "H×W×3" if dimensions == 3 else "H×W"
        if array.ndim != dimensions or (dimensions == 3 and array.shape[2] != 3) or not array.size:
            raise ValueError(f"shape {array.shape} was given: send bytes of a picture, or {wanted}")
        if array.dtype.kind not in "biu" or array.min() < 0 or array.max() > 255:
            raise ValueError(f"{array.dtype} was given: send whole numbers of 0 to 255")
        self._check_size(array.shape[1], array.shape[0])
        return array.astype(np.uint8)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ValueError(
                f"{width}×{height} is more than the {self.max_pixels} pixels this server takes: "
                "send a smaller picture or a part of it"
            )


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def refusal(line: str) -> MlflowException:
    """An error that the scoring server answers with status 400."""
    return MlflowException(line, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(Inpaint())
