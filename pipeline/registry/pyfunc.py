"""The pyfunc model that MLflow serves; this file is stored in the registry with the archive.

MLflow runs it (models from code) on machines that have mlflow, torch, numpy, Pillow and OpenCV but
not Lacuna: what it imports is stored too. An input row has `image` and `mask`: bytes of a PNG, JPEG
or WebP file, the same in base64, or uint8 arrays H×W×3 and H×W. Images and masks are read and
filled as by `predict`. Each output row has `image` in the form of the input (bytes: PNG, with the
image's alpha and profile), `sha256` of the archive, and `version`.

LACUNA_MAX_PIXELS: largest accepted image (default 16 megapixels; memory grows with size);
LACUNA_MODEL_VERSION: the value of `version`, set by the deployment.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from pipeline.inference.images import ImageFile, decode, decode_mask, encode
from pipeline.inference.tiling import fill_any
from shards.mask_file import doubt, read_hole
from shards.metadata import open_image

FORMATS = ("PNG", "JPEG", "WEBP")
FIELDS = ("image", "mask")


class BadRequest(MlflowException):
    """An error that the scoring server answers with status 400.

    The server would put the request, with its images, in front of the message.
    """

    message = property(lambda self: self.args[0], lambda self, message: None)

    def __init__(self, line: str) -> None:
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)


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
        self.max_pixels = int(os.environ.get("LACUNA_MAX_PIXELS", 16_000_000))

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        pairs = [(row, *self._pair(number, *row)) for number, row in enumerate(_rows(model_input))]
        answer = {"sha256": self.sha256, "version": os.environ.get("LACUNA_MODEL_VERSION", "")}
        results = []
        for row, image, hole in pairs:
            filled = image.filled(fill_any(self.module, image.pixels, hole, device=self.device))
            result = encode(filled) if isinstance(row[0], (bytes, str)) else filled.pixels
            results.append({"image": result, **answer})
        return results

    def _pair(self, number: int, image: Any, mask: Any) -> tuple[ImageFile, np.ndarray]:
        """Read an image and its hole, uint8 H×W, 1 = hole."""
        try:
            if isinstance(image, (bytes, str)):
                file = decode(self._file(image))
            else:
                file = ImageFile(self._array(image, 3))
            if isinstance(mask, (bytes, str)):
                hole = decode_mask(self._file(mask), "mask")
            else:
                hole = read_hole(Image.fromarray(self._array(mask, 2)))
        except ValueError as error:
            raise BadRequest(f"row {number}: {error}") from None
        if file.pixels.shape[:2] != hole.shape:
            raise BadRequest(
                f"row {number}: the image is {file.pixels.shape[1]}×{file.pixels.shape[0]}, its "
                f"mask {hole.shape[1]}×{hole.shape[0]}: send a mask of the image's size"
            )
        if line := doubt(hole):
            raise BadRequest(f"row {number}: {line}")
        return file, hole.astype(np.uint8)

    def _file(self, value: bytes | str) -> bytes:
        """Return an image file's bytes, of an accepted format and size."""
        try:
            if isinstance(value, str):  # base64, or a data: URL
                value = base64.b64decode("".join(value.rpartition(",")[2].split()), validate=True)
            with open_image(value, FORMATS) as image:
                self._check_size(*image.size)
        except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise ValueError(f"not a PNG, JPEG or WebP image ({type(error).__name__})") from None
        return value

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


def _rows(table: pandas.DataFrame) -> list[tuple[Any, Any]]:
    """Return images with their masks; MLflow leaves `inputs` with lists of both in one row."""
    if missing := [f"`{name}`" for name in FIELDS if name not in table]:
        raise BadRequest(
            f"no {' and no '.join(missing)} in the request: send "
            '{"dataframe_records": [{"image": …, "mask": …}]}, image files in base64'
        )
    rows: list[tuple[Any, Any]] = []
    for image, mask in zip(table["image"], table["mask"]):
        if not (
            isinstance(image, list) and image and isinstance(image[0], (bytes, str, np.ndarray))
        ):
            rows.append((image, mask))
        elif isinstance(mask, list) and len(mask) == len(image):
            rows += zip(image, mask)
        else:
            raise BadRequest(f"{len(image)} images need as many masks: send one for each")
    return rows


mlflow.models.set_model(Inpaint())
