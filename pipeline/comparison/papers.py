"""The papers' printed tables (`conf/paper_tables.yaml`), and what they may be compared with.

The authors published neither which picture met which mask nor their scripts, so no printed number
is ever of the same pairs as ours: at best the protocol is the same. Each cell says which it is.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml

from pipeline.config.compose import CONF

FILE = CONF / "paper_tables.yaml"
WANG = "gauss11_rgb"  # Wang et al. 2004, which MSA-Net cites for SSIM
MAIN = {"msanet": "6", "musical": "musical/1"}  # the table a protocol is known by
LIU = 12_000  # masks of Liu et al.'s test set
UNPUBLISHED = "same protocol, but its pairs are unpublished"


@lru_cache
def load() -> dict[str, Any]:
    """`papers`, `datasets` and `tables` of the file; not to be changed."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_bytes())
    return document


def table(name: str) -> dict[str, Any]:
    """One table by its name (`6`, `musical/1`), with `name`. ValueError lists the names."""
    tables = load()["tables"]
    if name not in tables:
        raise ValueError(f"table={name} is none of {', '.join(tables)}")
    return {"name": name, **tables[name]}


def dataset(name: str) -> dict[str, Any]:
    """A printed dataset: `title`, `names` of sharded sets that hold the same pictures, the `split`
    that is tested and how many `images` it has, and the `data` group of its recipe."""
    found: dict[str, Any] = load()["datasets"][name]
    return found


@lru_cache
def short_side(data: str) -> int | None:
    """What a group under `conf/data/` scales the short side to; None: left as stored."""
    found: int | None = yaml.safe_load((CONF / "data" / f"{data}.yaml").read_bytes())[
        "resize_short"
    ]
    return found


def provenance(paper: str, row: Mapping[str, Any]) -> str:
    """Who measured a printed row, with whose weights, trained on which masks where known."""
    if row.get("experiment"):
        text = f"measured by the authors of {paper}"
    elif row["by"] == "copied":
        text = f"copied by the authors of {paper} from {row['from']}"
    else:
        text = f"run by the authors of {paper}: {row['from']}"
    if row.get("trained_on"):
        text += f"; trained on {row['trained_on']}"
    return text


def status(
    printed: Mapping[str, Any],
    block: Mapping[str, Any],
    row: Mapping[str, Any],
    metric: str,
    ours: Mapping[str, Any] | None,
) -> str:
    """What a printed cell is to our results: the same protocol, or how it differs.

    printed: the table; ours: facts of an evaluation, None where there is none to compare with.
    """
    if ours is None:
        return "nothing of ours to compare with"
    differs = []
    known = dataset(block["dataset"])
    if ours["dataset_name"] not in known["names"]:
        differs.append(f"pictures ({known['title']}, ours {ours['dataset_name']})")
    else:
        differs += _of_the_set(known, ours)
    if ours["protocol"] != printed["protocol"]:
        differs.append(f"protocol ({printed['protocol']}, ours {ours['protocol']})")
    if printed["masks"] == "nvidia":
        count = ours.get("masks_count", LIU)  # tables of earlier versions do not say
        if ours.get("masks_name") != "imported":
            differs.append("masks (Liu et al.'s test set, ours drawn)")
        elif count < 0.9 * LIU:  # an import leaves out what no bucket holds
            differs.append(f"masks (Liu et al.'s {LIU}, ours {count} imported)")
    if row.get("size", 256) != ours["size"]:
        differs.append(f"size ({row.get('size', 256)}, ours {ours['size']})")
    if metric == "ssim":
        window = row.get("ssim_window", block.get("ssim_window", _cited(printed)))
        if window != ours["ssim"]:
            differs.append(f"SSIM window ({window}, ours {ours['ssim']})")
    return f"differs in {', '.join(differs)}" if differs else UNPUBLISHED


def _of_the_set(known: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """How what we took of the right pictures differs from what the paper tests on."""
    differs = []
    if ours["split"] != known["split"]:
        differs.append(f"split ({known['split']}, ours {ours['split']})")
    images = ours.get("images") or known["images"]  # tables of earlier versions do not say
    if images < known["images"]:
        differs.append(f"number of pictures ({known['images']}, ours {images})")
    if (short := short_side(known["data"])) != ours["resize_short"]:
        told = ours["resize_short"] or "as stored"
        differs.append(f"scale (short side {short}, ours {told})")
    return differs


def _cited(printed: Mapping[str, Any]) -> str:
    """The window a paper cites, or its released script uses."""
    return WANG if printed["paper"] == "msanet" else "uniform7_rgb"
