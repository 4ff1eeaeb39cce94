"""Names and values as MLflow takes them: metric keys, parameters, which way a metric is better."""

import functools
import json
import re
from typing import Any

from pipeline.tracking import provenance as capture

LOWER_IS_BETTER = ("l1", "l2", "mae", "loss", "lpips", "fid")


def lower_is_better(metric: str) -> bool:
    return any(word in metric for word in LOWER_IS_BETTER)


@functools.lru_cache(4096)
def clean(key: str) -> str:
    """A key with only what MLflow allows: `val/psnr (0.1,0.2]` becomes `val/psnr 0.1_0.2`."""
    return re.sub(r"_*([/ ])_*", r"\1", re.sub(r"[^\w\-./ ]+", "_", key)).strip("_")[:250]


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dictionaries as dotted keys; lists as JSON; secrets as `***`."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif value and capture.SECRET_NAME.search(str(key)):
            flat[clean(name)] = "***"
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[clean(name)] = capture.redact(text)
    return flat
