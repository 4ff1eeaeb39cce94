"""The pyfunc model that MLflow serves; this file is stored in the registry with the archive.

MLflow runs it (models from code) on machines that have mlflow, torch, numpy and Pillow but not
Lacuna. An input row has `image` and `mask`: bytes of a PNG, JPEG or WebP file, the same in base64,
or uint8 arrays H×W×3 and H×W; `shards.mask_file` and `metadata`, stored too, read them. Each output
row has `image` in the form of the input (bytes: PNG), `sha256` of the archive, and `version`.

LACUNA_MAX_PIXELS: largest accepted image (default 512×512; memory grows with size);
LACUNA_MODEL_VERSION: the value of `version`, set by the deployment.
"""

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from shards.mask_file import doubt, read_hole
from shards.metadata import open_image, turn_upright

BATCH = 8


class Inpaint(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Rows of images and masks in, rows of filled images out."""

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
        """Fill images (uint8 H×W×3) where their masks (bool H×W) are True; keep all other bytes."""
        results: list[np.ndarray] = [image for image, _ in pairs]
        for shape in {mask.shape for _, mask in pairs}:
            same = [i for i, (_, mask) in enumerate(pairs) if mask.shape == shape]
            for start in range(0, len(same), BATCH):
                chosen = same[start : start + BATCH]
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
            pixels, hole = self._decode(image, _pixels), self._decode(mask, read_hole)
        except ValueError as error:
            raise bad_request(f"row {number}: {error}") from None
        if pixels.shape[:2] != hole.shape:
            raise bad_request(
                f"row {number}: the image is {pixels.shape[1]}×{pixels.shape[0]}, its mask "
                f"{hole.shape[1]}×{hole.shape[0]}: send a mask of the image's size"
            )
        if line := doubt(hole):
            raise bad_request(f"row {number}: {line}")
        return pixels, hole

    def _decode(self, value: Any, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
        """Open bytes, base64 text or an array as an image, and read it."""
        if not isinstance(value, (bytes, str)):
            return read(Image.fromarray(self._array(value, 3 if read is _pixels else 2)))
        try:
            if isinstance(value, str):
                value = base64.b64decode("".join(value.split()), validate=True)
            with open_image(value, ("PNG", "JPEG", "WEBP")) as image:
                self._check_size(*image.size)
                return read(image)
        except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise ValueError(
                f"not an 8-bit PNG, JPEG or WebP image ({type(error).__name__})"
            ) from None

    def _array(self, value: Any, dimensions: int) -> np.ndarray:
        try:
            array = np.array(value)
        except ValueError:  # rows of different lengths
            array = np.array([])
        expected = "H×W×3" if dimensions == 3 else "H×W"
        if array.ndim != dimensions or (dimensions == 3 and array.shape[2] != 3) or not array.size:
            raise ValueError(f"shape {array.shape}: send the bytes of an image file, or {expected}")
        if array.dtype.kind not in "biu" or array.min() < 0 or array.max() > 255:
            raise ValueError(f"{array.dtype} array: send integers from 0 to 255")
        self._check_size(array.shape[1], array.shape[0])
        return array.astype(np.uint8)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ValueError(
                f"{width}×{height} exceeds the limit of {self.max_pixels} pixels: send a smaller "
                "image or a crop"
            )


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise OSError(image.mode)
    return np.array(turn_upright(image).convert("RGB"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bad_request(line: str) -> MlflowException:
    """Return an error that the scoring server answers with status 400."""
    return MlflowException(line, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(Inpaint())
