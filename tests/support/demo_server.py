"""The page of `demo`, served from a thread."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from pipeline.inference import demo


def photograph() -> np.ndarray:
    return data.chelsea()[40:237, 100:311]  # 211×197


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(config: Any, inpainters: list[Any]) -> Iterator[tuple[str, int]]:
    """Host and port, until the block ends."""
    server = demo.make(config, inpainters)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "127.0.0.1", server.port
    finally:
        server.shutdown()
        server.server_close()
