"""Check readiness: the server must fill the golden image as at the model's registration.

Exit status 0 if every pixel is within two gray levels (CPUs round differently), else 1.
"""

import base64
import io
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops


def main() -> str | None:
    """Return the problem; None when ready."""
    parent = os.environ.get("MODEL_FOLDER", "/tmp")
    folder = Path(parent, "lacuna-served-model", "artifacts", "golden")
    row = [base64.b64encode((folder / f"{n}.png").read_bytes()).decode() for n in ("image", "mask")]
    body = json.dumps({"dataframe_split": {"columns": ["image", "mask"], "data": [row]}})
    request = urllib.request.Request(
        f"http://127.0.0.1:{os.environ.get('PORT', '8080')}/invocations",
        body.encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            (result,) = json.loads(answer.read())["predictions"]
    except (OSError, ValueError, KeyError) as error:
        return f"no answer: {error}"
    if result["sha256"] != os.environ.get("LACUNA_SHA256", result["sha256"]):
        return f"another model is served: {result['sha256']}"
    filled = Image.open(io.BytesIO(base64.b64decode(result["image"]))).convert("RGB")
    expected = Image.open(folder / "filled.png").convert("RGB")
    if filled.size != expected.size:
        return f"the image returned has size {filled.size}, expected {expected.size}"
    extrema: Any = ImageChops.difference(filled, expected).getextrema()
    worst = max(high for _, high in extrema)
    return f"the golden image differs by {worst} gray levels" if worst > 2 else None


if __name__ == "__main__":
    if trouble := main():
        sys.exit(trouble)
